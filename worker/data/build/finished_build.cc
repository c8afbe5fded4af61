#include "worker/data/build/finished_build.h"

#include <string>

#include "common/hash.h"

#ifndef MT_VERSION
#error "MT_VERSION is given by worker/data/build/CMakeLists.txt"
#endif

namespace mt {
namespace {

// Sizes as far as they are listed: what costs next to nothing to compare.
absl::StatusOr<bool> SameFiles(Env* env, const DatasetManifest& manifest,
                               const BuildOptions& options) {
  const size_t num_inputs = static_cast<size_t>(manifest.num_inputs);
  if (num_inputs > options.inputs.size() ||
      (options.max_documents == 0 && num_inputs != options.inputs.size())) {
    return false;
  }
  for (size_t i = 0; i < manifest.inputs.size(); ++i) {
    if (manifest.inputs[i].path != options.inputs[i]) return false;
    MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(options.inputs[i]));
    MT_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
    if (bytes != manifest.inputs[i].bytes) return false;
  }
  return true;
}

// The lines that inputs_xxh3 is over (docs/spec/dataset.md).
absl::StatusOr<bool> SameContents(Env* env, const DatasetManifest& manifest,
                                  const BuildOptions& options) {
  Xxh3Stream lines;
  for (int64_t i = 0; i < manifest.num_inputs; ++i) {
    // The last one was perhaps not read to its end, and is not among them then.
    if (options.max_documents > 0 && i + 1 == manifest.num_inputs &&
        lines.Hex() == manifest.inputs_xxh3) {
      return true;
    }
    const std::string& path = options.inputs[static_cast<size_t>(i)];
    MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
    MT_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
    MT_ASSIGN_OR_RETURN(const std::string digest, Xxh3HexOfFile(env, path));
    const std::string line = absl::StrCat(path, "\t", bytes, "\t", digest, "\n");
    lines.Update(line.data(), line.size());
  }
  return lines.Hex() == manifest.inputs_xxh3;
}

}  // namespace

absl::StatusOr<bool> IsWhatBuildMakes(Env* env, const DatasetManifest& manifest,
                                      const RecordEncoderFactory& encoders,
                                      const BuildOptions& options) {
  if (manifest.mt_version != MT_VERSION || manifest.options != ManifestOptions(encoders, options) ||
      manifest.tokenizer_digest != encoders.tokenizer().digest()) {
    return false;
  }
  MT_ASSIGN_OR_RETURN(const bool same, SameFiles(env, manifest, options));
  if (!same) return false;
  return SameContents(env, manifest, options);
}

}  // namespace mt
