#include "coordinator/nodes/ssh.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <libssh/libssh.h>
#include <libssh/sftp.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/log.h"

namespace mt {
namespace {

// libssh 0.10 sends an sftp_write as one packet; servers drop the session above about 256 KiB.
constexpr size_t kWritePieceBytes = 32 << 10;
constexpr size_t kMaxOutputBytes = 1 << 20;

struct FreeKey {
  void operator()(ssh_key key) const { ssh_key_free(key); }
};
using KeyPtr = std::unique_ptr<std::remove_pointer_t<ssh_key>, FreeKey>;

class Socket {
 public:
  explicit Socket(int fd = -1) : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

std::string Place(const NodeConfig& node) {
  return absl::StrCat(node.name,
                      node.address == node.name ? "" : absl::StrCat(" (", node.address, ")"),
                      " port ", node.port);
}

absl::StatusOr<Socket> ConnectOne(const addrinfo& address, absl::Time deadline, int abort_fd) {
  Socket socket(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (socket.get() < 0) return absl::InternalError(std::strerror(errno));
  if (connect(socket.get(), address.ai_addr, address.ai_addrlen) != 0) {
    if (errno != EINPROGRESS) return absl::UnavailableError(std::strerror(errno));
    pollfd waits[2] = {{socket.get(), POLLOUT, 0}, {abort_fd, POLLIN, 0}};
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    const int ready =
        poll(waits, abort_fd < 0 ? 1 : 2, static_cast<int>(std::max<int64_t>(left, 0)));
    if (ready == 0) return absl::UnavailableError("no answer in time");
    if (ready < 0) return absl::UnavailableError(std::strerror(errno));
    if (abort_fd >= 0 && waits[1].revents != 0) return absl::CancelledError("cancelled");
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return absl::UnavailableError(std::strerror(error));
  }
  const int on = 1;
  setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  // A host that has gone without a word is noticed also while nothing is asked of it.
  const unsigned int gone_after_ms = 60000;
  setsockopt(socket.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(socket.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &gone_after_ms, sizeof(gone_after_ms));
  fcntl(socket.get(), F_SETFL, fcntl(socket.get(), F_GETFL) & ~O_NONBLOCK);
  return socket;
}

absl::StatusOr<Socket> ConnectSocket(const NodeConfig& node, absl::Duration timeout, int abort_fd) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(node.address.c_str(), std::to_string(node.port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(
        absl::StrCat(node.name, ": cannot resolve \"", node.address, "\": ", gai_strerror(error),
                     "; correct the hostfile, or give its address by addr="));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
  absl::Status last;
  for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
    absl::StatusOr<Socket> socket = ConnectOne(*address, absl::Now() + timeout, abort_fd);
    if (socket.ok()) return socket;
    last = socket.status();
    if (absl::IsCancelled(last)) break;
  }
  return absl::Status(
      last.code(),
      absl::StrCat("cannot connect to ", Place(node), ": ", last.message(),
                   "; is it on, is sshd running, is the port right (port= in the hostfile)?"));
}

std::string HomeFolder() {
  if (const char* home = getenv("HOME"); home != nullptr && *home != '\0') return home;
  passwd entry, *result = nullptr;
  char buffer[4096];
  if (getpwuid_r(getuid(), &entry, buffer, sizeof(buffer), &result) == 0 && result != nullptr)
    return result->pw_dir;
  return "/";
}

std::string ShellQuote(absl::string_view text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

// libssh waits for an answer without limit, whatever its own timeout says: SFTP's reads know none. So a thread watches: where
// the session has been waiting for longer than allowed it shuts the socket down, and the wait fails.
class Watchdog {
 public:
  Watchdog(int fd, absl::Duration timeout)
      : fd_(fd), timeout_(timeout), thread_([this] { Watch(); }) {}
  ~Watchdog() {
    {
      const absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    thread_.join();
  }
  // The session waits from now on; something came; it does not wait any more.
  void Arm() {
    const absl::MutexLock lock(&mutex_);
    due_ = absl::Now() + timeout_;
    ++changes_;
  }
  void Disarm() {
    const absl::MutexLock lock(&mutex_);
    due_ = absl::InfiniteFuture();
    ++changes_;
  }
  bool Expired() const {
    const absl::MutexLock lock(&mutex_);
    return expired_;
  }

 private:
  void Watch() {
    const absl::MutexLock lock(&mutex_);
    while (!stopping_ && !expired_) {
      const int64_t seen = changes_;
      const auto changed = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return stopping_ || changes_ != seen;
      };
      if (mutex_.AwaitWithDeadline(absl::Condition(&changed), due_)) continue;
      expired_ = true;
      shutdown(fd_, SHUT_RDWR);
    }
  }

  const int fd_;  // of the session, which outlives this
  const absl::Duration timeout_;
  mutable absl::Mutex mutex_;
  absl::Time due_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  int64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false, expired_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the rest
};

// The session waits while this lives.
class Waiting {
 public:
  explicit Waiting(Watchdog* watchdog) : watchdog_(watchdog) { watchdog_->Arm(); }
  ~Waiting() { watchdog_->Disarm(); }
  Waiting(const Waiting&) = delete;
  void Progress() { watchdog_->Arm(); }

 private:
  Watchdog* const watchdog_;
};

class LibsshSession : public SshSession {
 public:
  LibsshSession(NodeConfig node, SshOptions options)
      : node_(std::move(node)), options_(std::move(options)) {}
  ~LibsshSession() override {
    if (watchdog_ != nullptr) watchdog_->Arm();
    if (sftp_ != nullptr) sftp_free(sftp_);
    if (session_ != nullptr) {
      ssh_disconnect(session_);
      watchdog_ = nullptr;
      ssh_free(session_);  // closes the socket
    }
  }

  absl::Status Open(int abort_fd) {
    MT_ASSIGN_OR_RETURN(Socket socket, ConnectSocket(node_, options_.connect_timeout, abort_fd));
    RememberLocalAddress(socket.get());
    session_ = ssh_new();
    if (session_ == nullptr) return absl::ResourceExhaustedError("libssh: out of memory");
    const int one = 1, zero = 0;
    const long seconds = std::max<long>(1, absl::ToInt64Seconds(options_.connect_timeout));
    const unsigned int port = node_.port;
    Set(SSH_OPTIONS_PROCESS_CONFIG, options_.use_config ? &one : &zero);
    Set(SSH_OPTIONS_HOST, node_.address.c_str());
    Set(SSH_OPTIONS_PORT, &port);
    if (!node_.user.empty()) Set(SSH_OPTIONS_USER, node_.user.c_str());
    Set(SSH_OPTIONS_KNOWNHOSTS, options_.known_hosts.c_str());
    Set(SSH_OPTIONS_GLOBAL_KNOWNHOSTS, "/dev/null");
    Set(SSH_OPTIONS_TIMEOUT, &seconds);
    Set(SSH_OPTIONS_NODELAY, &one);  // without it libssh writes 1 MB/s
    fd_ = socket.get();
    Set(SSH_OPTIONS_FD, &fd_);
    socket.release();
    watchdog_ = std::make_unique<Watchdog>(fd_, options_.answer_timeout);
    const Waiting waiting(watchdog_.get());
    if (ssh_connect(session_) != SSH_OK) {
      return absl::UnavailableError(absl::StrCat("SSH handshake with ", Place(node_), ": ",
                                                 LastError(),
                                                 "; does an SSH server listen there?"));
    }
    MT_RETURN_IF_ERROR(CheckHostKey());
    return Authenticate();
  }

  absl::StatusOr<Output> Run(const std::string& command, absl::string_view input,
                             absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    Waiting waiting(watchdog_.get());
    const std::unique_ptr<std::remove_pointer_t<ssh_channel>, void (*)(ssh_channel)> channel(
        ssh_channel_new(session_), [](ssh_channel c) { ssh_channel_free(c); });
    if (channel == nullptr || ssh_channel_open_session(channel.get()) != SSH_OK)
      return Failure("open a session");
    if (ssh_channel_request_exec(channel.get(), command.c_str()) != SSH_OK)
      return Failure("run a command");
    while (!input.empty()) {
      const int count =
          ssh_channel_write(channel.get(), input.data(), std::min(input.size(), kWritePieceBytes));
      if (count <= 0) return Failure("send data to the command");
      input.remove_prefix(count);
      waiting.Progress();
    }
    if (ssh_channel_send_eof(channel.get()) != SSH_OK) return Failure("send data to the command");
    Output output;
    char buffer[16 << 10];
    while (!ssh_channel_is_eof(channel.get()) || ssh_channel_poll(channel.get(), 0) > 0 ||
           ssh_channel_poll(channel.get(), 1) > 0) {
      waiting
          .Progress();  // these reads return by themselves, and the command has a time of its own
      if (absl::Now() > deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat(node_.name, ": the bootstrap command took longer than ",
                         absl::FormatDuration(timeout), "; so far it said: ", output.err));
      }
      const int out = ssh_channel_read_timeout(channel.get(), buffer, sizeof(buffer), 0, 50);
      if (out == SSH_ERROR) return Failure("read the command's output");
      if (out > 0) Keep(output.out, buffer, out);
      const int err = ssh_channel_read_nonblocking(channel.get(), buffer, sizeof(buffer), 1);
      if (err == SSH_ERROR) return Failure("read the command's output");
      if (err > 0) Keep(output.err, buffer, err);
    }
    output.exit_status = ssh_channel_get_exit_status(channel.get());
    return output;
  }

  absl::Status WriteFile(const std::string& remote_path, absl::string_view contents,
                         int mode) override {
    Waiting waiting(watchdog_.get());
    MT_ASSIGN_OR_RETURN(const FilePtr file, OpenRemote(remote_path, mode));
    MT_RETURN_IF_ERROR(WriteAll(file.get(), contents, remote_path, waiting));
    return CloseRemote(file, remote_path, mode);
  }

  absl::Status UploadFile(const std::string& local_path, const std::string& remote_path,
                          int mode) override {
    std::ifstream local(local_path, std::ios::binary);
    if (!local) return absl::NotFoundError(absl::StrCat("cannot read ", local_path));
    Waiting waiting(watchdog_.get());
    MT_ASSIGN_OR_RETURN(const FilePtr file, OpenRemote(remote_path, mode));
    std::string piece(kWritePieceBytes, '\0');
    while (local.read(piece.data(), static_cast<std::streamsize>(piece.size())),
           local.gcount() > 0) {
      MT_RETURN_IF_ERROR(
          WriteAll(file.get(), absl::string_view(piece.data(), static_cast<size_t>(local.gcount())),
                   remote_path, waiting));
    }
    if (local.bad()) return absl::DataLossError(absl::StrCat("reading ", local_path, " failed"));
    return CloseRemote(file, remote_path, mode);
  }

  std::string LocalAddress() const override { return local_address_; }
  void Abort() override {
    if (fd_ >= 0) shutdown(fd_, SHUT_RDWR);
  }

 private:
  struct FileDeleter {
    void operator()(sftp_file file) const { sftp_close(file); }
  };
  using FilePtr = std::shared_ptr<std::remove_pointer_t<sftp_file>>;

  void Set(ssh_options_e option, const void* value) {
    MT_CHECK(ssh_options_set(session_, option, value) == SSH_OK)
        << "ssh option " << option << ": " << LastError();
  }
  std::string LastError() const {
    const char* text = ssh_get_error(session_);
    return text == nullptr || *text == '\0' ? "connection lost" : text;
  }
  bool Frozen() const { return watchdog_ != nullptr && watchdog_->Expired(); }
  absl::Status FrozenFailure(absl::string_view step) const {
    return absl::DeadlineExceededError(absl::StrCat(
        node_.name, ": the host did not answer for ", absl::FormatDuration(options_.answer_timeout),
        " while the coordinator wanted to ", step,
        "; is its disk (or a network file system there) stuck, or sshd stopped? It is tried "
        "again"));
  }
  absl::Status Failure(absl::string_view step) const {
    if (Frozen()) return FrozenFailure(step);
    return absl::UnavailableError(
        absl::StrCat(node_.name, ": SSH could not ", step, ": ", LastError()));
  }
  static void Keep(std::string& text, const char* data, int size) {
    text.append(data,
                std::min<size_t>(size, kMaxOutputBytes - std::min(kMaxOutputBytes, text.size())));
  }

  void RememberLocalAddress(int fd) {
    sockaddr_storage address = {};
    socklen_t size = sizeof(address);
    char text[NI_MAXHOST];
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0 &&
        getnameinfo(reinterpret_cast<sockaddr*>(&address), size, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) == 0) {
      local_address_ = text;
    }
  }

  absl::Status CheckHostKey() {
    const ssh_known_hosts_e state = ssh_session_is_known_server(session_);
    if (state == SSH_KNOWN_HOSTS_OK) return absl::OkStatus();
    ssh_key raw = nullptr;
    if (ssh_get_server_publickey(session_, &raw) != SSH_OK) return Failure("read the host key");
    const KeyPtr key(raw);
    std::string fingerprint = "unknown";
    unsigned char* hash = nullptr;
    size_t hash_size = 0;
    if (ssh_get_publickey_hash(key.get(), SSH_PUBLICKEY_HASH_SHA256, &hash, &hash_size) == SSH_OK) {
      if (char* text = ssh_get_fingerprint_hash(SSH_PUBLICKEY_HASH_SHA256, hash, hash_size);
          text != nullptr) {
        fingerprint = text;
        ssh_string_free_char(text);
      }
      ssh_clean_pubkey_hash(&hash);
    }
    const std::string host =
        node_.port == 22 ? node_.address : absl::StrCat("[", node_.address, "]:", node_.port);
    const char* type = ssh_key_type_to_char(ssh_key_type(key.get()));
    if (state == SSH_KNOWN_HOSTS_UNKNOWN || state == SSH_KNOWN_HOSTS_NOT_FOUND) {
      char* base64 = nullptr;
      std::string line;
      if (ssh_pki_export_pubkey_base64(key.get(), &base64) == SSH_OK) {
        line = absl::StrCat(host, " ", KeyTypeName(key.get()), " ", base64);
        ssh_string_free_char(base64);
      }
      if (options_.accept_new_hosts && !line.empty()) return RememberHost(line, fingerprint);
      return absl::FailedPreconditionError(
          absl::StrCat(node_.name, ": the host key is not known: ", type, " ", fingerprint,
                       ". Compare it with the machine's own (ssh-keygen -lf /etc/ssh/ssh_host_",
                       type, "_key.pub there); if it is right, accept it with: printf '%s\\n' ",
                       ShellQuote(line), " >> ", ShellQuote(options_.known_hosts)));
    }
    if (state == SSH_KNOWN_HOSTS_CHANGED || state == SSH_KNOWN_HOSTS_OTHER) {
      return absl::FailedPreconditionError(
          absl::StrCat(node_.name, ": the host key has CHANGED; it is now ", type, " ", fingerprint,
                       ". Either the machine was reinstalled or somebody is in between. Nothing "
                       "was sent to it. If the new key is "
                       "right, remove the old one with: ssh-keygen -f ",
                       ShellQuote(options_.known_hosts), " -R ", ShellQuote(host)));
    }
    return absl::FailedPreconditionError(absl::StrCat(node_.name,
                                                      ": cannot check the host key against ",
                                                      options_.known_hosts, ": ", LastError()));
  }
  // The user asked for it by --accept-new-hosts. One line per write, one writer at a time.
  absl::Status RememberHost(const std::string& line, const std::string& fingerprint) {
    static absl::Mutex mutex(absl::kConstInit);
    absl::MutexLock lock(&mutex);
    std::ofstream file(options_.known_hosts, std::ios::app);
    file << line << "\n" << std::flush;
    if (!file)
      return absl::PermissionDeniedError(absl::StrCat("cannot write ", options_.known_hosts));
    MT_LOG(Warning) << node_.name << ": accepted the new host key " << fingerprint << " as asked";
    return absl::OkStatus();
  }
  // known_hosts wants the curve in an ECDSA key's type.
  static std::string KeyTypeName(ssh_key key) {
    if (ssh_key_type(key) == SSH_KEYTYPE_RSA) return "ssh-rsa";
    if (const char* name = ssh_pki_key_ecdsa_name(key);
        name != nullptr && absl::StartsWith(name, "ecdsa"))
      return name;
    return ssh_key_type_to_char(ssh_key_type(key));
  }

  absl::Status Authenticate() {
    std::vector<std::string> tried;
    std::vector<std::string> identities = options_.identities;
    const bool named = !identities.empty();
    if (!named) {
      for (const char* name : {"id_ed25519", "id_ecdsa", "id_rsa"}) {
        identities.push_back(absl::StrCat(HomeFolder(), "/.ssh/", name));
      }
    }
    for (const std::string& identity : identities) {
      if (!named && access(identity.c_str(), F_OK) != 0) continue;
      ssh_key raw = nullptr;
      // An empty passphrase, so that an encrypted key fails instead of prompting.
      if (access(identity.c_str(), R_OK) != 0 ||
          ssh_pki_import_privkey_file(identity.c_str(), "", nullptr, nullptr, &raw) != SSH_OK) {
        tried.push_back(
            absl::StrCat(identity,
                         " (cannot be read: absent, not a key, or locked by a passphrase; an "
                         "agent can hold it)"));
        continue;
      }
      const KeyPtr key(raw);
      const int result = ssh_userauth_publickey(session_, nullptr, key.get());
      if (result == SSH_AUTH_SUCCESS) return absl::OkStatus();
      if (result == SSH_AUTH_ERROR) return Failure("authenticate");
      tried.push_back(absl::StrCat(identity, " (refused)"));
    }
    if (options_.use_agent && getenv("SSH_AUTH_SOCK") != nullptr) {
      const int result = ssh_userauth_agent(session_, nullptr);
      if (result == SSH_AUTH_SUCCESS) return absl::OkStatus();
      tried.push_back("the agent's keys (refused)");
    }
    return absl::PermissionDeniedError(absl::StrCat(
        node_.name, ": the host accepts none of our keys for user ",
        node_.user.empty() ? "(our own)" : node_.user, "; tried ",
        tried.empty() ? "nothing, because no key was found" : absl::StrJoin(tried, ", "),
        ". Put the public key into ~/.ssh/authorized_keys there, or name another with --identity"));
  }

  absl::Status EnsureSftp() {
    if (sftp_ != nullptr) return absl::OkStatus();
    sftp_ = sftp_new(session_);
    if (sftp_ == nullptr) return Failure("open SFTP");
    if (sftp_init(sftp_) != SSH_OK) {
      if (Frozen()) return FrozenFailure("open SFTP");
      sftp_free(std::exchange(sftp_, nullptr));
      return absl::FailedPreconditionError(absl::StrCat(
          node_.name,
          ": the host offers no SFTP; enable it in sshd_config (Subsystem sftp internal-sftp)"));
    }
    return absl::OkStatus();
  }
  absl::Status SftpFailure(absl::string_view step, const std::string& path) const {
    if (Frozen()) return FrozenFailure(absl::StrCat(step, " ", path));
    const int code = sftp_get_error(sftp_);
    const char* why = code == SSH_FX_PERMISSION_DENIED ? "permission denied"
                      : code == SSH_FX_NO_SUCH_FILE    ? "no such folder"
                      : code == SSH_FX_FAILURE         ? "failed (disk full?)"
                                                       : nullptr;
    const std::string message = absl::StrCat(node_.name, ": cannot ", step, " ", path, ": ",
                                             why != nullptr ? why : LastError());
    if (code == SSH_FX_PERMISSION_DENIED) return absl::PermissionDeniedError(message);
    if (code == SSH_FX_FAILURE) return absl::ResourceExhaustedError(message);
    return absl::UnavailableError(message);
  }
  absl::StatusOr<FilePtr> OpenRemote(const std::string& path, int mode) {
    MT_RETURN_IF_ERROR(EnsureSftp());
    sftp_file file = sftp_open(sftp_, path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, mode);
    if (file == nullptr) return SftpFailure("create", path);
    return FilePtr(file, FileDeleter());
  }
  absl::Status WriteAll(sftp_file file, absl::string_view data, const std::string& path,
                        Waiting& waiting) {
    while (!data.empty()) {
      const ssize_t count = sftp_write(file, data.data(), std::min(data.size(), kWritePieceBytes));
      if (count <= 0) return SftpFailure("write", path);
      data.remove_prefix(count);
      waiting.Progress();
    }
    return absl::OkStatus();
  }
  // The mode of the open was only for a new file.
  absl::Status CloseRemote(const FilePtr& file, const std::string& path, int mode) {
    if (sftp_chmod(sftp_, path.c_str(), mode) != 0) return SftpFailure("set the mode of", path);
    return absl::OkStatus();
  }

  const NodeConfig node_;
  const SshOptions options_;
  ssh_session session_ = nullptr;
  sftp_session sftp_ = nullptr;
  int fd_ = -1;                         // owned by session_
  std::unique_ptr<Watchdog> watchdog_;  // of fd_
  std::string local_address_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SshSession>> SshSession::Connect(const NodeConfig& node,
                                                                const SshOptions& options,
                                                                int abort_fd) {
  auto session = std::make_unique<LibsshSession>(node, options);
  MT_RETURN_IF_ERROR(session->Open(abort_fd));
  return session;
}

}  // namespace mt
