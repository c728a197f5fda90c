// Between a matrix as compressed sparse rows (CSR) and the structure of a weight, without a dense
// matrix. Cold code: time and memory are those of the entries and of the pointers.
#pragma once

#include "products/structure.hpp"

namespace gossamer {

struct Csr {
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t nnz = 0;
  const std::int64_t* indptr = nullptr;   // [rows + 1]
  const std::int64_t* columns = nullptr;  // [nnz]
  // It is the transpose of a matrix that was given by its columns (CSC): errors then name the
  // coordinates of that matrix.
  bool csc = false;
};

// indptr rises from 0 to nnz, columns lie inside and rise in every row. Throws StructureError that
// names the first coordinate at fault. Whatever the arrays hold, nothing outside them is read.
void check_csr(const Csr& csr);

// The structure of a CSR matrix; value i of the weight is value perm[i] of the CSR.
struct FromCsr {
  Encoded structure;
  std::vector<std::int32_t> perm;
};

// The V rows of a panel must agree, and N:M must keep n of every m. Throws StructureError.
FromCsr encode_csr(const Csr& csr, std::int64_t vector, std::int64_t n, std::int64_t m);

// indptr [rows + 1], columns [nnz] and perm [nnz]: value i of the CSR is value perm[i] of the
// weight. The structure was checked.
void decode_csr(const Panels& layout, std::int64_t* indptr, std::int64_t* columns,
                std::int32_t* perm);

}  // namespace gossamer
