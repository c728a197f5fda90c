// Growth: new entries in place of those that a weight dropped, at random or by score. Time and
// memory are those of the entries, of the (block, panel) cells and of one slab of scores.
//
//   kept    ids  1 4 7         stays  1 0 1         grown  5         result  1 5 7
//
// A candidate is each place that is not kept by an entry that stays, so what was dropped may come
// back. N:M grows in each group of m as many as were lost there, every other structure as many as
// it lost, anywhere. Results are the same for any number of threads.
#pragma once

#include "products/structure.hpp"

namespace gossamer {

// Uniform over all choices of candidates. stays [entries] holds 0 and 1; the structure is checked.
Encoded grow_random(const Panels& w, const std::uint8_t* stays, std::uint64_t seed);

// The candidates with the largest scores, which are offered by slabs of rows from the first to the
// last. The score of an entry is the sum of the magnitudes of its V scores, in double, or NaN if
// one is NaN. A NaN grows last; of equal scores the one of the lower panel, then column, grows.
class GrowLargest {
 public:
  // Copies the structure, which is checked, and stays. Throws std::bad_alloc.
  GrowLargest(const Panels& w, const std::uint8_t* stays);

  const Panels& layout() const noexcept { return w_; }

  // The first row of the next slab.
  std::int64_t next_row() const noexcept { return panel_ * w_.vector; }

  // The scores [rows, cols] of the next rows, whole panels, float32 or float64, columns side by
  // side. Throws std::bad_alloc.
  void offer(const Matrix& scores, DType dtype);

  // The structure that has grown. Every row was offered.
  Encoded finish();

 private:
  // Of the best candidates so far; `slot` is panel * cols + column.
  struct Candidate {
    std::int64_t key;
    std::int64_t slot;
  };

  template <class Key>
  void offer_groups(const Key& key, std::int64_t panels) noexcept;
  template <class Key>
  void offer_anywhere(const Key& key, std::int64_t panels);
  template <class Key>
  void offer_keys(const Key& key, std::int64_t panels);
  static bool better(const Candidate& a, const Candidate& b) noexcept;
  static std::int64_t keep_best(std::vector<Candidate>& list, std::int64_t count) noexcept;

  std::vector<std::uint8_t> indices_, stays_;
  std::vector<std::int32_t> indptr_;
  Panels w_;
  std::int64_t panel_ = 0;  // of the next slab
  std::int64_t lost_ = 0;   // dropped entries
  std::int64_t bar_;        // a key above which a candidate is among the best so far
  std::vector<Candidate> best_;
  std::vector<std::uint8_t> grown_;  // of N:M: the indices of the result
};

}  // namespace gossamer
