// For compare.py: cases, one in a line, from standard input; what mt makes of each, one in a line, to standard output.
//   dump_order FOLDER < CASES
#include <cstdio>
#include <iostream>

#include "tests/golden/sample_order/sample_order.h"

int main(int argc, char** argv) {
  if (argc != 2) return 64;
  for (std::string line; std::getline(std::cin, line);) {
    const absl::StatusOr<mt::OrderArrays> arrays =
        mt::OrderOf(nlohmann::json::parse(line), argv[1]);
    nlohmann::json out;
    if (arrays.ok()) {
      out = *arrays;
    } else {
      out["error"] = arrays.status().ToString();
    }
    std::cout << out.dump() << "\n" << std::flush;
  }
  return 0;
}
