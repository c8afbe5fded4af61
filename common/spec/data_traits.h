// What a data section asks for, once it is resolved.
#pragma once

#include <string>

#include "mt/v1/spec.pb.h"

namespace mt {

inline constexpr int kNoEod = -1;  // data.eod: no id ends a document

// Whether a stage needs to know which document each row is of; every stage has attention, and every one rotates.
inline bool SeesDocuments(const v1::DataSpec& data) {
  return data.document_mask() || data.reset_positions();
}

// Whether labels have no loss whatever the datasets say; a dataset may mask some itself (PREFIX.loss).
inline bool MasksLabels(const v1::DataSpec& data) {
  return data.mask_eod() || data.packing() == v1::DataSpec::PACKING_DOCUMENTS;
}

// The first key that needs the end of a document, as `key = value`; empty: none does.
inline std::string WhatNeedsEod(const v1::DataSpec& data) {
  if (data.mask_eod()) return "data.mask_eod = true";
  if (data.document_mask()) return "data.document_mask = true";
  if (data.reset_positions()) return "data.reset_positions = true";
  if (data.packing() == v1::DataSpec::PACKING_DOCUMENTS) return "data.packing = documents";
  if (data.fim().rate() != 0) return "data.fim";
  return "";
}

}  // namespace mt
