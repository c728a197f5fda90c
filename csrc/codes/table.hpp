// What is compiled once an instruction set: kernels on sparse codes, k active latents a row.
#pragma once

#include "core/types.hpp"

namespace gossamer {

struct CodesTable {
  const char* name;
};

extern "C" {
extern const CodesTable gossamer_codes_avx512;
extern const CodesTable gossamer_codes_avx2;
extern const CodesTable gossamer_codes_portable;
}

// The table of the instruction set in use.
const CodesTable& codes_table();

}  // namespace gossamer
