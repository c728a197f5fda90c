// The table of one ISA. This file is compiled once for each, with that ISA's flags, and defines
// one symbol; everything it includes lives in unnamed namespaces.
#include "kernels/table.hpp"

#include "kernels/cpu/sddmm.hpp"
#include "kernels/cpu/spmm.hpp"
#include "kernels/cpu/spmm_t.hpp"

#if defined(GOSSAMER_ISA_AVX512)
#define GOSSAMER_TABLE gossamer_table_avx512
#define GOSSAMER_TABLE_NAME "avx512"
#elif defined(GOSSAMER_ISA_AVX2)
#define GOSSAMER_TABLE gossamer_table_avx2
#define GOSSAMER_TABLE_NAME "avx2"
#elif defined(GOSSAMER_ISA_EMULATED)
#define GOSSAMER_TABLE gossamer_table_emulated
#define GOSSAMER_TABLE_NAME "emulated"
#else
#define GOSSAMER_TABLE gossamer_table_portable
#define GOSSAMER_TABLE_NAME "portable"
#endif

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
  return {sddmm_pack<T, V>, sddmm<T, V>, sddmm_chunk_bytes<T, V>, sddmm_run<Compute<T>, V>};
}

#define GOSSAMER_ROW(make, T) {make<T, 1>(), make<T, 4>(), make<T, 8>()}
#define GOSSAMER_VERB(make) \
  {GOSSAMER_ROW(make, float), GOSSAMER_ROW(make, double), GOSSAMER_ROW(make, bf16)}

}  // namespace

extern "C" constexpr KernelTable GOSSAMER_TABLE = {
    GOSSAMER_TABLE_NAME,
    GOSSAMER_VERB(spmm_kernel),
    GOSSAMER_VERB(spmm_t_kernel),
    GOSSAMER_VERB(sddmm_kernel),
};

}  // namespace gossamer
