#include "transport/laplacian.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"

namespace gossamer {
namespace {

// Entries below which one thread is faster than waking the others.
constexpr std::int64_t serial_nnz = 1 << 16;

template <class F>
void each_index(std::int64_t n, int workers, F&& body) noexcept {
  const std::int64_t rows = chunk_rows(n);
  parallel_for(chunk_count(n), workers, [&](std::int64_t chunk, int) noexcept {
    for (std::int64_t i = chunk * rows; i < std::min(n, (chunk + 1) * rows); ++i) {
      body(static_cast<std::size_t>(i));
    }
  });
}

double row_dot(const Entries& a, std::size_t i, const Vector& z) noexcept {
  double sum = 0.0;
  for (std::int64_t e = a.indptr[i]; e < a.indptr[i + 1]; ++e) {
    const auto k = static_cast<std::size_t>(e);
    sum += a.values[k] * z[static_cast<std::size_t>(a.cols[k])];
  }
  return sum;
}

double dot(const Vector& a, const Vector& b) noexcept {
  double sum = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double norm1(const Vector& a) noexcept {
  double sum = 0.0;
  for (const double x : a) sum += std::abs(x);
  return sum;
}

void remove_mean(Vector& a) noexcept {
  double sum = 0.0;
  for (const double x : a) sum += x;
  sum /= static_cast<double>(a.size());
  for (double& x : a) x -= sum;
}

}  // namespace

Laplacian::Laplacian(const Entries& entries, std::int64_t m, Vector rest, Vector column,
                     bool singular, int workers)
    : entries_(entries),
      n_(static_cast<std::int64_t>(entries.indptr.size()) - 1),
      m_(m),
      rest_(std::move(rest)),
      column_(std::move(column)),
      diagonal_(rest_),
      singular_(singular),
      workers_(entries.nnz() < serial_nnz ? 1 : workers) {
  const auto nnz = static_cast<std::size_t>(entries.nnz());
  columns_.indptr.assign(static_cast<std::size_t>(m) + 1, 0);
  columns_.cols.resize(nnz);
  columns_.values.resize(nnz);
  for (std::size_t e = 0; e < nnz; ++e) {
    ++columns_.indptr[static_cast<std::size_t>(entries.cols[e]) + 1];
  }
  for (std::size_t j = 0; j < static_cast<std::size_t>(m); ++j) {
    columns_.indptr[j + 1] += columns_.indptr[j];
  }
  std::vector<std::int64_t> next(columns_.indptr.begin(), columns_.indptr.end() - 1);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n_); ++i) {
    double sum = 0.0;
    for (std::int64_t e = entries.indptr[i]; e < entries.indptr[i + 1]; ++e) {
      const auto k = static_cast<std::size_t>(e);
      const auto j = static_cast<std::size_t>(entries.cols[k]);
      const auto to = static_cast<std::size_t>(next[j]++);
      columns_.cols[to] = static_cast<std::int32_t>(i);
      columns_.values[to] = entries.values[k];
      sum += entries.values[k] * (std::max(column_[j] - entries.values[k], 0.0) / column_[j]);
    }
    diagonal_[i] += sum;
  }
  // A row whose whole mass is one entry that fills its column is an island: its diagonal is zero up
  // to rounding, and a floor keeps the preconditioner finite.
  for (std::size_t i = 0; i < static_cast<std::size_t>(n_); ++i) {
    double row = rest_[i];
    for (std::int64_t e = entries.indptr[i]; e < entries.indptr[i + 1]; ++e) {
      row += entries.values[static_cast<std::size_t>(e)];
    }
    diagonal_[i] = std::max(diagonal_[i], 1e-14 * row);
    if (!(diagonal_[i] > 0.0)) diagonal_[i] = 1.0;
  }
}

void Laplacian::transpose_times(const Vector& z, Vector& out) const {
  out.resize(static_cast<std::size_t>(m_));
  each_index(m_, workers_, [&](std::size_t j) noexcept { out[j] = row_dot(columns_, j, z); });
}

void Laplacian::times(const Vector& z, Vector& out) const {
  out.resize(static_cast<std::size_t>(n_));
  each_index(n_, workers_, [&](std::size_t i) noexcept { out[i] = row_dot(entries_, i, z); });
}

void Laplacian::apply(const Vector& z, Vector& out, Vector& zbar) const {
  each_index(m_, workers_,
             [&](std::size_t j) noexcept { zbar[j] = row_dot(columns_, j, z) / column_[j]; });
  each_index(n_, workers_, [&](std::size_t i) noexcept {
    double sum = rest_[i] * z[i];
    for (std::int64_t e = entries_.indptr[i]; e < entries_.indptr[i + 1]; ++e) {
      const auto k = static_cast<std::size_t>(e);
      sum += entries_.values[k] * (z[i] - zbar[static_cast<std::size_t>(entries_.cols[k])]);
    }
    out[i] = sum;
  });
}

LinearReport Laplacian::solve(const Vector& rhs, double tol, std::int64_t max_iter,
                              Vector& z) const {
  const auto n = static_cast<std::size_t>(n_);
  Vector residual = rhs, direction(n), image(n), scaled(n), zbar(static_cast<std::size_t>(m_));
  z.assign(n, 0.0);
  if (singular_) remove_mean(residual);
  const double start = norm1(residual);
  LinearReport report{true, 0, 0.0};
  if (!(start > 0.0)) return report;
  double before = 0.0;
  for (; report.iterations < max_iter; ++report.iterations) {
    report.residual = norm1(residual) / start;
    if (report.residual <= tol) break;
    for (std::size_t i = 0; i < n; ++i) scaled[i] = residual[i] / diagonal_[i];
    const double now = dot(residual, scaled);
    const double beta = report.iterations == 0 ? 0.0 : now / before;
    before = now;
    for (std::size_t i = 0; i < n; ++i) direction[i] = scaled[i] + beta * direction[i];
    apply(direction, image, zbar);
    const double curvature = dot(direction, image);
    if (!(curvature > 0.0) || !std::isfinite(now)) break;
    const double step = now / curvature;
    for (std::size_t i = 0; i < n; ++i) {
      z[i] += step * direction[i];
      residual[i] -= step * image[i];
    }
  }
  report.residual = norm1(residual) / start;
  report.converged = report.residual <= tol;
  return report;
}

}  // namespace gossamer
