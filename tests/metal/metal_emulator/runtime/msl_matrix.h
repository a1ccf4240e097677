// simdgroup_matrix: 8x8 values spread over a SIMD-group, in the layout that published kernels rely
// on: each lane holds two adjacent columns of one row.
#pragma once
#include "msl_simd.h"

namespace metal {
MTL_I int mtl_row(uint lane) { return (int)(((lane >> 4) << 2) + ((lane >> 1) & 3)); }
MTL_I int mtl_column(uint lane) { return (int)((((lane >> 3) & 1) << 2) + ((lane & 1) << 1)); }

template <typename T, int C = 8, int R = 8>
struct simdgroup_matrix {
  static_assert(C == 8 && R == 8, "only 8x8");
  mtl_vec<T, 2> e;
  uchar is_set;  // something was stored in it

  MTL_NOSAN simdgroup_matrix() : is_set(0) {  // a GPU leaves it as it is
    e[0] = (T)__builtin_nanf("");
    e[1] = e[0];
  }
  // Metal makes a diagonal matrix of one value, and does not fill all of it.
  MTL_NOSAN explicit simdgroup_matrix(T diagonal) : is_set(1) {
    int row = mtl_row(mtl_cur->lane), column = mtl_column(mtl_cur->lane);
    e[0] = row == column ? diagonal : (T)0;
    e[1] = row == column + 1 ? diagonal : (T)0;
  }
  mtl_vec<T, 2>& thread_elements() {
    is_set = 1;
    return e;
  }
};
typedef simdgroup_matrix<float> simdgroup_float8x8;
typedef simdgroup_matrix<half> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat> simdgroup_bfloat8x8;

template <typename T, int C, int R>
MTL_I simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, C, R> m;
  m.e[0] = v;
  m.e[1] = v;
  m.is_set = 1;
  return m;
}

// ---- loads and stores: element (row, column) of the matrix in memory
MTL_I ulong mtl_offset(ulong per_row, ulong2 origin, bool is_transposed, int k) {
  int row = mtl_row(mtl_cur->lane), column = mtl_column(mtl_cur->lane) + k;
  if (is_transposed) return (origin[1] + column) * per_row + origin[0] + row;
  return (origin[1] + row) * per_row + origin[0] + column;
}
template <typename T, int C, int R, typename P>
MTL_I void simdgroup_load(simdgroup_matrix<T, C, R>& d, P* source, ulong per_row = 8,
                          ulong2 origin = (ulong2)0, bool is_transposed = false, MTL_SITE_ARGS) {
  mtl_sync(MK_SIMD, "simdgroup_load", MTL_SITE, 0, nullptr, mtl_combine_nothing, nullptr);
  d.is_set = 1;
  for (int k = 0; k < 2; k++) d.e[k] = source[mtl_offset(per_row, origin, is_transposed, k)];
}
template <typename T, int C, int R, typename P>
MTL_I void simdgroup_store(simdgroup_matrix<T, C, R> s, P* target, ulong per_row = 8,
                           ulong2 origin = (ulong2)0, bool is_transposed = false, MTL_SITE_ARGS) {
  mtl_sync(MK_SIMD, "simdgroup_store", MTL_SITE, 0, nullptr, mtl_combine_nothing, nullptr);
  for (int k = 0; k < 2; k++) target[mtl_offset(per_row, origin, is_transposed, k)] = s.e[k];
}

// ---- products: sums in float, over k = 0..7 in order; hardware may add in another order
template <typename TD, typename TA, typename TB, typename TC>
struct mtl_product {
  simdgroup_matrix<TD>* d;
  const simdgroup_matrix<TA>* a;
  const simdgroup_matrix<TB>* b;
  const simdgroup_matrix<TC>* c;  // null: nothing is added
};
template <typename TD, typename TA, typename TB, typename TC>
MTL_NOSAN void mtl_combine_product(void** slots, uint, void*) {
  typedef mtl_product<TD, TA, TB, TC> Product;
  float a[8][8], b[8][8], d[8][8];
  for (uint lane = 0; lane < 32; lane++) {
    Product* p = (Product*)slots[lane];
    int row = mtl_row(lane), column = mtl_column(lane);
    for (int k = 0; k < 2; k++) {
      a[row][column + k] = (float)p->a->e[k];
      b[row][column + k] = (float)p->b->e[k];
      d[row][column + k] = p->c ? (float)p->c->e[k] : 0.0f;
    }
  }
  for (int row = 0; row < 8; row++)
    for (int k = 0; k < 8; k++)
      for (int column = 0; column < 8; column++) d[row][column] += a[row][k] * b[k][column];
  for (uint lane = 0; lane < 32; lane++) {
    Product* p = (Product*)slots[lane];
    int row = mtl_row(lane), column = mtl_column(lane);
    p->d->e[0] = (TD)d[row][column];
    p->d->e[1] = (TD)d[row][column + 1];
    p->d->is_set = 1;
  }
  mtl_count(MC_MMA, 1);
}
template <typename TD, typename TA, typename TB, typename TC>
MTL_I void simdgroup_multiply_accumulate(simdgroup_matrix<TD>& d, const simdgroup_matrix<TA>& a,
                                         const simdgroup_matrix<TB>& b,
                                         const simdgroup_matrix<TC>& c, MTL_SITE_ARGS) {
  static_assert(mtl::same<TA, TB> || mtl::same<TA, float> || mtl::same<TB, float>,
                "half and bfloat fragments do not mix");
  if (!(a.is_set & b.is_set & c.is_set)) {
    const char* which = !a.is_set ? "A" : !b.is_set ? "B" : "accumulator";
    mtl_report("uninitialised-fragment", _line,
               "simdgroup_multiply_accumulate with an %s that nothing was stored in", which);
  }
  mtl_product<TD, TA, TB, TC> p{&d, &a, &b, &c};
  mtl_sync(MK_SIMD, "simdgroup_multiply_accumulate", MTL_SITE, 0, &p,
           mtl_combine_product<TD, TA, TB, TC>, nullptr);
}
template <typename TD, typename TA, typename TB>
MTL_I void simdgroup_multiply(simdgroup_matrix<TD>& d, const simdgroup_matrix<TA>& a,
                              const simdgroup_matrix<TB>& b, MTL_SITE_ARGS) {
  mtl_product<TD, TA, TB, TD> p{&d, &a, &b, nullptr};
  mtl_sync(MK_SIMD, "simdgroup_multiply", MTL_SITE, 0, &p, mtl_combine_product<TD, TA, TB, TD>,
           nullptr);
}
}  // namespace metal
