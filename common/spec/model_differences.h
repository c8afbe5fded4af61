// In what two models differ.
#pragma once

#include <string>
#include <vector>

#include "mt/v1/spec.pb.h"

namespace mt {

// One line per field in which two resolved models differ, "model.heads is 8, not 4"; what only training asks for (initial
// spread, coefficients of losses) is not compared. shapes_only: nor what does not change a tensor's shape.
std::vector<std::string> ModelDifferences(const v1::ModelSpec& model, const v1::ModelSpec& other,
                                          bool shapes_only);

}  // namespace mt
