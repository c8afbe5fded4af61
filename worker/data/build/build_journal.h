// PREFIX.journal.json: how far an interrupted build got.
//
// It is replaced as a whole, and only after everything that it speaks of is on stable storage; so whatever is killed whenever, the
// files begin with what the journal says, and what follows there is cut off.
//
// The last one of a build is sealed: every file is whole under its partial name, the manifest too, and nothing is left to do but
// rename them (CommitDataset). Only then is the dataset that they replace touched; and the journal goes last of all, so that a build
// that was stopped in between is finished, not begun again.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset_writer.h"
#include "worker/data/spool_file.h"
#include "worker/data/text/chunk_reader.h"

namespace mt {

// The files as they will be shown.
struct SealedBuild {
  IndexedDatasetSummary files;
  SpoolFile::State manifest;
};

struct BuildJournal {
  // By name, all that the result depends on: options, encoder, tokenizer, version, the list of inputs.
  std::map<std::string, std::string> identity;
  // What is written: all of the files before `file`, and of that one what stands before `position`.
  size_t file = 0;
  TextPosition position;
  uint64_t input_bytes = 0;  // of the files themselves
  IndexedDatasetWriter::State writer;
  SpoolFile::State bad, inputs, hashes;
  int64_t bad_lines = 0;
  int64_t duplicates = 0;
  int64_t empty_documents = 0;
  // If it is there, `bad` and `inputs` are whole, and `writer` and `hashes` are needed no more.
  std::optional<SealedBuild> sealed;
};

absl::Status WriteBuildJournal(Env* env, const std::string& prefix, const BuildJournal& journal);
// nullopt: there is none. DATA_LOSS: it is no journal.
absl::StatusOr<std::optional<BuildJournal>> ReadBuildJournal(Env* env, const std::string& prefix);

// FAILED_PRECONDITION: the journal is of a build with another identity than `now`; names what differs, and the remedy.
absl::Status CheckIdentity(const std::string& prefix, const BuildJournal& journal,
                           const std::map<std::string, std::string>& now);
// Of a sealed build: every file is where it was or has its name already, and has the bytes that were written. Reads them all.
// DATA_LOSS names one that has not.
absl::Status CheckSealed(Env* env, const std::string& prefix, const BuildJournal& journal);

}  // namespace mt
