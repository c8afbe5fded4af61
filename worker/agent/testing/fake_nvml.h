// What testing/fake_nvml.cc, a library that is loaded as NVML, answers.
#pragma once

struct FakeNvmlDevice {
  int code = 0;  // of every call
  unsigned temperature = 61;
  bool has_ecc = true;
  unsigned long long uncorrected = 0;
};
struct FakeNvml {
  int init_code = 0;
  int count = 2;
  int calls = 0;
  FakeNvmlDevice devices[4];
};
extern "C" FakeNvml* fake_nvml_state();
