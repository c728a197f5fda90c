// The table of one ISA. This file is compiled once for each, with that ISA's flags, and defines
// one symbol; everything it includes lives in unnamed namespaces.
#include "products/table.hpp"

#include "products/cpu/sddmm.hpp"
#include "products/cpu/spmm.hpp"
#include "products/cpu/spmm_t.hpp"

namespace gossamer {
namespace {

template <class T, int V>
constexpr Kernel<SpmmArgs> spmm_kernel() {
  return {spmm<T, V>, spmm_scratch<T>, spmm_tile<T>};
}
template <class T, int V>
constexpr Kernel<SpmmTArgs> spmm_t_kernel() {
  return {spmm_t<T, V>, spmm_t_scratch<T>, spmm_t_tile<T>};
}
template <class T, int V>
constexpr SddmmKernel sddmm_kernel() {
  return {sddmm_pack<T, V>, sddmm<T, V>, sddmm_chunk_bytes<T, V>, sddmm_run<T, V>};
}

#define GOSSAMER_ROW(make, T) {make<T, 1>(), make<T, 4>(), make<T, 8>()}
// Tables of pairs: the rest is left to the table that follows.
#if defined(GOSSAMER_ISA_AVX512BF16) || defined(GOSSAMER_ISA_NEONBF16)
#define GOSSAMER_VERB(make) {{}, {}, GOSSAMER_ROW(make, bf16)}
#else
#define GOSSAMER_VERB(make) \
  {GOSSAMER_ROW(make, float), GOSSAMER_ROW(make, double), GOSSAMER_ROW(make, bf16)}
#endif

}  // namespace

// --8<-- [start:rows]
extern "C" constexpr ProductsTable GOSSAMER_TABLE = {
    GOSSAMER_ISA_NAME,
    GOSSAMER_VERB(spmm_kernel),
    GOSSAMER_VERB(spmm_t_kernel),
    GOSSAMER_VERB(sddmm_kernel),
};
// --8<-- [end:rows]

}  // namespace gossamer
