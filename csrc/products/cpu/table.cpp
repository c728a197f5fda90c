// The table of one ISA. This file is compiled once for each, with that ISA's flags, and defines
// one symbol; everything it includes lives in unnamed namespaces.
#include "products/table.hpp"

#include "products/cpu/sddmm.hpp"
#include "products/cpu/spmm_t.hpp"
#include "products/cpu/spmm_windows.hpp"
#include "products/cpu/tiles.hpp"
#include "products/cpu/tiles_gradients.hpp"

namespace gossamer {
namespace {

template <class T, int V>
constexpr Kernel<SpmmArgs> spmm_kernel() {
  return {spmm<T, V>, spmm_scratch<T>, spmm_task_rows<T>};
}
template <class T, int V>
constexpr Kernel<SpmmTArgs> spmm_t_kernel() {
  return {spmm_t<T, V>, spmm_t_scratch<T>, spmm_t_tile<T>};
}
template <class T, int V>
constexpr SddmmKernel sddmm_kernel() {
  return {sddmm_pack<T, V>, sddmm<T, V>, sddmm_chunk_bytes<T, V>, sddmm_run<T, V>};
}

// Of runs of panels: by tiles, or as their panels.
#if GOSSAMER_HAS_TILES
constexpr Kernel<SpmmArgs> spmm_kernel_of_runs = {spmm_tiles, spmm_tiles_scratch,
                                                  tile_task_rows<SpmmArgs>, spmm_tiles_prepared,
                                                  spmm_tiles_prepare};
constexpr Kernel<SpmmTArgs> spmm_t_kernel_of_runs = {spmm_t_tiles, spmm_t_tiles_scratch,
                                                     tile_task_rows<SpmmTArgs>,
                                                     spmm_t_tiles_prepared, spmm_t_tiles_prepare};
constexpr SddmmKernel sddmm_kernel_of_runs = {sddmm_tiles_pack, sddmm_tiles,
                                              sddmm_chunk_bytes<bf16, 8>, sddmm_run<bf16, 8>};
#else
constexpr auto spmm_kernel_of_runs = spmm_kernel<bf16, 8>();
constexpr auto spmm_t_kernel_of_runs = spmm_t_kernel<bf16, 8>();
constexpr auto sddmm_kernel_of_runs = sddmm_kernel<bf16, 8>();
#endif

#define GOSSAMER_ROW(make, T) {make<T, 1>(), make<T, 4>(), make<T, 8>(), make<T, 8>()}
#define GOSSAMER_PAIRS_ROW(make) {make<bf16, 1>(), make<bf16, 4>(), make<bf16, 8>(), make##_of_runs}
// Tables of a few kernels leave the rest to the table that follows.
#if defined(GOSSAMER_ISA_AMX)
#define GOSSAMER_VERB(make)                \
  {                                        \
    {}, {}, { {}, {}, {}, make##_of_runs } \
  }
#elif defined(GOSSAMER_ISA_AVX512BF16) || defined(GOSSAMER_ISA_NEONBF16)
#define GOSSAMER_VERB(make) {{}, {}, GOSSAMER_PAIRS_ROW(make)}
#else
#define GOSSAMER_VERB(make) \
  {GOSSAMER_ROW(make, float), GOSSAMER_ROW(make, double), GOSSAMER_PAIRS_ROW(make)}
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
