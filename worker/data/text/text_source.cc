#include "worker/data/text/text_source.h"

namespace mt {

absl::StatusOr<std::unique_ptr<TextSource>> TextSource::Open(Env* env, const std::string& path,
                                                             const TextSourceOptions& options,
                                                             BadLineHandler on_bad_line,
                                                             size_t chunk_bytes) {
  MT_ASSIGN_OR_RETURN(auto reader, ChunkReader::Open(env, path, options, chunk_bytes));
  return std::unique_ptr<TextSource>(
      new TextSource(path, std::move(reader), options, std::move(on_bad_line)));
}

absl::StatusOr<bool> TextSource::Next(std::string* document) {
  Record record;
  while (true) {
    if (!records_.Next(&record)) {
      MT_ASSIGN_OR_RETURN(const bool more, reader_->Next(&chunk_));
      if (!more) return false;
      records_.Begin(&chunk_, reader_->format());
    } else if (!record.reason.empty()) {
      MT_RETURN_IF_ERROR(on_bad_line_({path_, record.line, record.reason}));
    } else {
      document->assign(record.text.data(), record.text.size());
      return true;
    }
  }
}

}  // namespace mt
