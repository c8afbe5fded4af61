#include "coordinator/store/sqlite_store.h"

#include <sqlite3.h>
#include <unistd.h>

#include <functional>

#include "absl/strings/ascii.h"
#include "common/random.h"

namespace mt {
namespace {

// Raise when a table changes its meaning, and migrate in Open. Protos inside the rows only ever gain fields.
constexpr int kSchemaVersion = 1;

// The columns beside `record` are for people with the sqlite3 shell and for the indexes; `record` is the truth.
constexpr char kSchema[] = R"sql(
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, state INTEGER NOT NULL, ordering INTEGER NOT NULL,
  request_id TEXT NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (job_id TEXT PRIMARY KEY, step INTEGER NOT NULL, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempts (job_id TEXT NOT NULL, generation INTEGER NOT NULL, record BLOB NOT NULL,
  PRIMARY KEY (job_id, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (job_id TEXT NOT NULL, step INTEGER NOT NULL, state INTEGER NOT NULL,
  record BLOB NOT NULL, PRIMARY KEY (job_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, incarnation TEXT NOT NULL, acknowledged INTEGER NOT NULL,
  record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, job_id TEXT NOT NULL, record BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_job ON events (job_id, sequence);
)sql";

absl::Status SqliteStatus(sqlite3* database, int code, absl::string_view what) {
  const std::string message = absl::StrCat(
      what, ": ", database != nullptr ? sqlite3_errmsg(database) : sqlite3_errstr(code));
  switch (code & 0xff) {
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(
          absl::StrCat(message, "; free space on the state folder's disk"));
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(absl::StrCat(
          message, "; restore the file from a backup, or move it away to start empty"));
    case SQLITE_IOERR:
      return absl::DataLossError(message);
    case SQLITE_BUSY:
      return absl::FailedPreconditionError(
          absl::StrCat(message, "; another program has the file open"));
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

class SqliteStore : public StateStore {
 public:
  SqliteStore(std::unique_ptr<FileLock> lock, std::string path, Clock* clock)
      : lock_(std::move(lock)), path_(std::move(path)), clock_(clock) {}
  ~SqliteStore() override {
    for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
    sqlite3_close(database_);
  }

  absl::Status Open() {
    const int code =
        sqlite3_open_v2(path_.c_str(), &database_,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, nullptr);
    if (code != SQLITE_OK) return SqliteStatus(database_, code, absl::StrCat("open ", path_));
    sqlite3_extended_result_codes(database_, 1);
    MT_RETURN_IF_ERROR(Execute("PRAGMA journal_mode=WAL"));
    MT_RETURN_IF_ERROR(Execute("PRAGMA synchronous=FULL"));
    std::string verdict;
    MT_RETURN_IF_ERROR(Query("PRAGMA quick_check(1)", {}, [&](sqlite3_stmt* row) {
      verdict = reinterpret_cast<const char*>(sqlite3_column_text(row, 0));
      return absl::OkStatus();
    }));
    if (verdict != "ok") {
      return absl::DataLossError(
          absl::StrCat(path_, " is damaged (", verdict,
                       "); restore it from a backup, or move it away to start empty"));
    }
    int version = 0;
    MT_RETURN_IF_ERROR(Query("PRAGMA user_version", {}, [&](sqlite3_stmt* row) {
      version = sqlite3_column_int(row, 0);
      return absl::OkStatus();
    }));
    if (version > kSchemaVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat(path_, " has schema version ", version, ", this program knows ",
                       kSchemaVersion, "; use the newer mt-coordinator that wrote it"));
    }
    MT_RETURN_IF_ERROR(Execute(kSchema));
    return Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion));
  }

  absl::StatusOr<StoredState> Load() override {
    StoredState state;
    auto meta = [&](const char* key) -> absl::StatusOr<std::string> {
      std::string value;
      MT_RETURN_IF_ERROR(Query("SELECT value FROM meta WHERE key=?", {key}, [&](sqlite3_stmt* row) {
        value = reinterpret_cast<const char*>(sqlite3_column_text(row, 0));
        return absl::OkStatus();
      }));
      return value;
    };
    MT_ASSIGN_OR_RETURN(const std::string epoch, meta("epoch"));
    MT_ASSIGN_OR_RETURN(state.cluster_id, meta("cluster_id"));
    state.epoch = std::max<int64_t>((epoch.empty() ? 0 : std::stoll(epoch)) + 1,
                                    absl::ToUnixSeconds(clock_->Now()));
    if (state.cluster_id.empty()) state.cluster_id = Random::Real()->Id(12);
    MT_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      MT_RETURN_IF_ERROR(
          Query("REPLACE INTO meta VALUES ('epoch', ?)", {absl::StrCat(state.epoch)}, nullptr));
      return Query("REPLACE INTO meta VALUES ('cluster_id', ?)", {state.cluster_id}, nullptr);
    }));
    MT_RETURN_IF_ERROR(ReadAll<store::JobRecord>(
        "SELECT record FROM jobs", "jobs",
        [&](auto record) { state.jobs[record.job().id()] = std::move(record); }));
    MT_RETURN_IF_ERROR(Query("SELECT job_id, record FROM progress", {}, [&](sqlite3_stmt* row) {
      return Parse(row, 1, "progress",
                   state.progress[reinterpret_cast<const char*>(sqlite3_column_text(row, 0))]);
    }));
    MT_RETURN_IF_ERROR(
        ReadAll<store::AttemptRecord>("SELECT record FROM attempts", "attempts", [&](auto record) {
          state.attempts[{record.job_id(), record.generation()}] = std::move(record);
        }));
    MT_RETURN_IF_ERROR(ReadAll<store::CheckpointRecord>(
        "SELECT record FROM checkpoints", "checkpoints", [&](auto record) {
          state.checkpoints[{record.job_id(), record.step()}] = std::move(record);
        }));
    MT_RETURN_IF_ERROR(ReadAll<store::NodeRecord>(
        "SELECT record FROM nodes", "nodes",
        [&](auto record) { state.nodes[record.name()] = std::move(record); }));
    MT_RETURN_IF_ERROR(
        Query("SELECT COALESCE(MAX(sequence), 0) FROM events", {}, [&](sqlite3_stmt* row) {
          state.last_event_sequence = sqlite3_column_int64(row, 0);
          return absl::OkStatus();
        }));
    return state;
  }

  absl::Status Commit(const StoreBatch& batch) override {
    return InTransaction([&]() -> absl::Status {
      for (const auto& [id, record] : batch.jobs) {
        MT_RETURN_IF_ERROR(Query(
            "REPLACE INTO jobs VALUES (?, ?, ?, ?, ?)",
            {id, record.job().state(), record.order(), record.job().request_id(), Blob(record)},
            nullptr));
      }
      for (const auto& [id, record] : batch.progress) {
        MT_RETURN_IF_ERROR(Query("REPLACE INTO progress VALUES (?, ?, ?)",
                                 {id, record.step(), Blob(record)}, nullptr));
      }
      for (const auto& [key, record] : batch.attempts) {
        MT_RETURN_IF_ERROR(Query("REPLACE INTO attempts VALUES (?, ?, ?)",
                                 {key.first, key.second, Blob(record)}, nullptr));
      }
      for (const auto& [key, record] : batch.checkpoints) {
        if (record.has_value()) {
          MT_RETURN_IF_ERROR(Query("REPLACE INTO checkpoints VALUES (?, ?, ?, ?)",
                                   {key.first, key.second, record->state(), Blob(*record)},
                                   nullptr));
        } else {
          MT_RETURN_IF_ERROR(Query("DELETE FROM checkpoints WHERE job_id=? AND step=?",
                                   {key.first, key.second}, nullptr));
        }
      }
      for (const auto& [name, record] : batch.nodes) {
        MT_RETURN_IF_ERROR(Query(
            "REPLACE INTO nodes VALUES (?, ?, ?, ?)",
            {name, record.incarnation(), record.acknowledged_sequence(), Blob(record)}, nullptr));
      }
      for (const v1::Event& event : batch.events) {
        MT_RETURN_IF_ERROR(Query("REPLACE INTO events VALUES (?, ?, ?)",
                                 {event.sequence(), event.job_id(), Blob(event)}, nullptr));
      }
      return absl::OkStatus();
    });
  }

  absl::StatusOr<std::vector<v1::Event>> ListEvents(const std::string& job_id,
                                                    int64_t after_sequence, int limit) override {
    std::vector<v1::Event> events;
    auto add = [&](sqlite3_stmt* row) { return Parse(row, 0, "events", events.emplace_back()); };
    if (job_id.empty()) {
      MT_RETURN_IF_ERROR(
          Query("SELECT record FROM (SELECT sequence, record FROM events WHERE sequence>? "
                "ORDER BY sequence DESC LIMIT ?) ORDER BY sequence",
                {after_sequence, limit}, add));
    } else {
      MT_RETURN_IF_ERROR(
          Query("SELECT record FROM (SELECT sequence, record FROM events WHERE job_id=? AND "
                "sequence>? ORDER BY sequence DESC LIMIT ?) ORDER BY sequence",
                {job_id, after_sequence, limit}, add));
    }
    return events;
  }

 private:
  struct Value {
    Value(const char* text) : text(text) {}
    Value(std::string text, bool blob = false) : text(std::move(text)), is_blob(blob) {}
    Value(int64_t number) : number(number), is_number(true) {}
    Value(int number) : number(number), is_number(true) {}
    std::string text;
    int64_t number = 0;
    bool is_number = false, is_blob = false;
  };
  static Value Blob(const google::protobuf::MessageLite& message) {
    return Value(message.SerializeAsString(), true);
  }

  absl::Status Parse(sqlite3_stmt* row, int column, absl::string_view table,
                     google::protobuf::MessageLite& into) {
    if (into.ParseFromArray(sqlite3_column_blob(row, column), sqlite3_column_bytes(row, column)))
      return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(path_, ": a row of table ", table,
                                            " cannot be read; restore it from a backup"));
  }
  template <typename Record>
  absl::Status ReadAll(const char* sql, absl::string_view table, std::function<void(Record)> add) {
    return Query(sql, {}, [&](sqlite3_stmt* row) {
      Record record;
      MT_RETURN_IF_ERROR(Parse(row, 0, table, record));
      add(std::move(record));
      return absl::OkStatus();
    });
  }

  absl::Status Execute(const std::string& sql) {
    const int code = sqlite3_exec(database_, sql.c_str(), nullptr, nullptr, nullptr);
    return code == SQLITE_OK ? absl::OkStatus() : SqliteStatus(database_, code, path_);
  }

  // Statements are prepared once per text. `on_row` may be null.
  absl::Status Query(const std::string& sql, const std::vector<Value>& values,
                     const std::function<absl::Status(sqlite3_stmt*)>& on_row) {
    sqlite3_stmt*& statement = statements_[sql];
    if (statement == nullptr) {
      const int code = sqlite3_prepare_v2(database_, sql.c_str(), -1, &statement, nullptr);
      if (code != SQLITE_OK) return SqliteStatus(database_, code, path_);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      const Value& value = values[i];
      const int index = static_cast<int>(i) + 1;
      if (value.is_number) {
        sqlite3_bind_int64(statement, index, value.number);
      } else if (value.is_blob) {
        sqlite3_bind_blob(statement, index, value.text.data(), static_cast<int>(value.text.size()),
                          SQLITE_STATIC);
      } else {
        sqlite3_bind_text(statement, index, value.text.data(), static_cast<int>(value.text.size()),
                          SQLITE_STATIC);
      }
    }
    absl::Status status;
    int code;
    while (status.ok() && (code = sqlite3_step(statement)) == SQLITE_ROW) {
      if (on_row) status = on_row(statement);
    }
    if (status.ok() && code != SQLITE_DONE) status = SqliteStatus(database_, code, path_);
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return status;
  }

  absl::Status InTransaction(const std::function<absl::Status()>& work) {
    MT_RETURN_IF_ERROR(Execute("BEGIN IMMEDIATE"));
    absl::Status status = work();
    if (status.ok()) status = Execute("COMMIT");
    // SQLite may have rolled back by itself (disk full); then it is in autocommit mode again.
    if (!status.ok() && sqlite3_get_autocommit(database_) == 0) {
      if (const absl::Status rollback = Execute("ROLLBACK"); !rollback.ok()) {
        return absl::DataLossError(
            absl::StrCat(status.message(), "; and rolling back failed: ", rollback.message()));
      }
    }
    return status;
  }

  std::unique_ptr<FileLock> lock_;
  const std::string path_;
  Clock* const clock_;
  sqlite3* database_ = nullptr;
  std::map<std::string, sqlite3_stmt*> statements_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StateStore>> OpenSqliteStore(Env* env,
                                                            const std::string& state_directory,
                                                            Clock* clock) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(state_directory));
  const std::string lock_path = JoinPath(state_directory, "coordinator.lock");
  auto lock = env->Lock(lock_path);
  if (!lock.ok()) {
    if (lock.status().code() != absl::StatusCode::kFailedPrecondition) return lock.status();
    const auto holder = ReadFile(env, lock_path, 64);
    const std::string pid = holder.ok() ? std::string(absl::StripAsciiWhitespace(*holder)) : "";
    return absl::FailedPreconditionError(absl::StrCat(
        "another coordinator (pid ", pid.empty() ? "unknown" : pid, ") holds the state folder ",
        state_directory, "; stop it, or give this one a folder of its own"));
  }
  {
    MT_ASSIGN_OR_RETURN(const auto file,
                        env->NewWritableFile(lock_path, Env::WriteMode::kTruncate));
    MT_RETURN_IF_ERROR(file->Append(absl::StrCat(getpid(), "\n")));
    MT_RETURN_IF_ERROR(file->Close());
  }
  auto store = std::make_unique<SqliteStore>(std::move(lock).value(),
                                             JoinPath(state_directory, "coordinator.db"), clock);
  MT_RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace mt
