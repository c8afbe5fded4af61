#include "worker/data/text/byte_source.h"

#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <limits>

#include "common/hash.h"

namespace mt {
namespace {

constexpr size_t kRawBytes = 256 << 10;
constexpr int kGzipOnly = 16;  // inflateInit2: added to the window's size

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(std::unique_ptr<RandomAccessFile> file) : file_(std::move(file)) {}
  absl::StatusOr<size_t> Read(size_t size, char* buffer) override {
    MT_ASSIGN_OR_RETURN(const size_t bytes, file_->Read(offset_, size, buffer));
    digest_.Update(buffer, bytes);
    offset_ += bytes;
    return bytes;
  }
  uint64_t file_bytes() const override { return offset_; }
  std::string file_xxh3() const override { return digest_.Hex(); }

 private:
  const std::unique_ptr<RandomAccessFile> file_;
  uint64_t offset_ = 0;
  Xxh3Stream digest_;
};

// What the two formats share: the file's bytes in pieces, and the words for what is wrong with them.
class PackedSource : public ByteSource {
 public:
  PackedSource(std::unique_ptr<RandomAccessFile> file, std::string path, absl::string_view format)
      : raw_(std::move(file)), path_(std::move(path)), format_(format), piece_(kRawBytes, '\0') {}
  uint64_t file_bytes() const override { return raw_.file_bytes() - left_.size(); }
  std::string file_xxh3() const override { return raw_.file_xxh3(); }

 protected:
  // Makes `left_` the next bytes of the file; false at its end.
  absl::StatusOr<bool> Refill() {
    MT_ASSIGN_OR_RETURN(const size_t bytes, raw_.Read(piece_.size(), piece_.data()));
    left_ = absl::string_view(piece_.data(), bytes);
    return bytes > 0;
  }
  absl::Status Damaged(absl::string_view what) const {
    return absl::DataLossError(absl::StrCat(path_, ": ", what, " at byte ", file_bytes(),
                                            " of this ", format_, " file; fetch the file again"));
  }
  absl::string_view left_;  // of the piece, not yet unpacked

 private:
  PlainSource raw_;
  const std::string path_;
  const absl::string_view format_;
  std::string piece_;
};

class GzipSource : public PackedSource {
 public:
  GzipSource(std::unique_ptr<RandomAccessFile> file, std::string path)
      : PackedSource(std::move(file), std::move(path), "gzip") {}
  ~GzipSource() override {
    if (started_) inflateEnd(&stream_);
  }

  absl::StatusOr<size_t> Read(size_t size, char* buffer) override {
    size_t done = 0;
    while (done < size) {
      if (left_.empty()) {
        MT_ASSIGN_OR_RETURN(const bool more, Refill());
        if (!more) {
          if (in_member_ || !started_) return Damaged("cut off");
          return done;
        }
      }
      if (!in_member_) {
        MT_ASSIGN_OR_RETURN(const bool begun, Begin());
        if (!begun) continue;
      }
      stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(left_.data()));
      stream_.avail_in = static_cast<uInt>(left_.size());
      const size_t room = std::min<size_t>(size - done, std::numeric_limits<uInt>::max());
      stream_.next_out = reinterpret_cast<Bytef*>(buffer + done);
      stream_.avail_out = static_cast<uInt>(room);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      left_.remove_prefix(left_.size() - stream_.avail_in);
      done += room - stream_.avail_out;
      if (result == Z_STREAM_END) {
        in_member_ = false;
      } else if (result != Z_OK && result != Z_BUF_ERROR) {
        return Damaged(stream_.msg != nullptr ? stream_.msg : "damaged");
      }
    }
    return done;
  }

 private:
  // At the border of members; false where only zeros were.
  absl::StatusOr<bool> Begin() {
    if (started_) {
      const size_t zeros = std::min(left_.find_first_not_of('\0'), left_.size());
      if (zeros > 0) padding_ = true;
      left_.remove_prefix(zeros);
      if (left_.empty()) return false;
      if (padding_) return Damaged("something else behind the end");
      if (inflateReset(&stream_) != Z_OK) return Damaged("no further member");
    } else {
      if (inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK)
        return absl::ResourceExhaustedError("no memory to unpack gzip");
      started_ = true;
    }
    in_member_ = true;
    return true;
  }

  z_stream stream_{};
  bool started_ = false;
  bool in_member_ = false;
  bool padding_ = false;
};

class ZstdSource : public PackedSource {
 public:
  ZstdSource(std::unique_ptr<RandomAccessFile> file, std::string path)
      : PackedSource(std::move(file), path, "zstd"),
        path_(std::move(path)),
        stream_(ZSTD_createDStream(), &ZSTD_freeDStream) {}

  absl::StatusOr<size_t> Read(size_t size, char* buffer) override {
    ZSTD_outBuffer out{buffer, size, 0};
    while (out.pos < out.size) {
      if (left_.empty() && !full_) {
        MT_ASSIGN_OR_RETURN(const bool more, Refill());
        if (!more) {
          if (in_frame_ || file_bytes() == 0) return Damaged("cut off");
          break;
        }
      }
      ZSTD_inBuffer in{left_.data(), left_.size(), 0};
      const size_t result = ZSTD_decompressStream(stream_.get(), &out, &in);
      if (ZSTD_isError(result)) {
        if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge) {
          return absl::ResourceExhaustedError(absl::StrCat(
              path_,
              ": unpacking it needs a window of more than 128 MiB; pack it again without "
              "zstd's --ultra --long=28 and above"));
        }
        return Damaged(ZSTD_getErrorName(result));
      }
      left_.remove_prefix(in.pos);
      in_frame_ = result != 0;
      full_ = in_frame_ && out.pos == out.size;  // more may be ready without further input
    }
    return out.pos;
  }

 private:
  const std::string path_;
  const std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  bool in_frame_ = false;
  bool full_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> OpenByteSource(Env* env, const std::string& path,
                                                           Compression compression) {
  MT_ASSIGN_OR_RETURN(std::unique_ptr<RandomAccessFile> file, env->NewRandomAccessFile(path));
  if (compression == Compression::kGzip) return std::make_unique<GzipSource>(std::move(file), path);
  if (compression == Compression::kZstd) return std::make_unique<ZstdSource>(std::move(file), path);
  return std::make_unique<PlainSource>(std::move(file));
}

}  // namespace mt
