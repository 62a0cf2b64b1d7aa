// CPU side of the operators: chooses kernels for this processor, cuts the work into tiles, runs them in parallel.

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

#include "cpu_call.h"
#include "problem.h"
#include "window.h"

namespace softpool3d {
namespace {

// --- which kernels ---------------------------------------------------------------------------------------------------

const Kernels* kernels_of(int64_t level) {
  const Kernels* found = level >= 2 ? avx512_kernels() : nullptr;
  if (!found && level >= 1) found = avx2_kernels();
  return found ? found : portable_kernels();
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  if (!chosen) chosen = kernels_of(2);
  return *chosen;
}

int64_t cpu_level() { return kernels().level; }

// For tests: the kernels of at most this level.
void limit_cpu_level(int64_t level) {
  require(level >= 0 && level <= 2, "limit_cpu_level: level must be 0 (portable), 1 (AVX2) or 2 (AVX-512), but got ",
          level);
  chosen = kernels_of(level);
}

// --- from a problem to plain data ------------------------------------------------------------------------------------


bool is_identity(const Axis<int64_t>& axis) { return axis.kernel == 1 && axis.stride == 1; }

// Two axes of dense memory become one where nothing happens along them, or where every window holds the whole inner
// axis: a global pool becomes one long row.
bool fold(Axis<int64_t>& outer, Axis<int64_t>& inner) {
  const int64_t n = inner.size;
  if (is_identity(outer) && is_identity(inner)) {
    inner.size = inner.out = outer.size * n;
  } else if (inner.out == 1 && inner.kernel >= n && inner.padding == 0 && inner.dilation == 1 && outer.kernel > 0 &&
             outer.dilation == 1) {
    inner = {outer.size * n, outer.out, outer.kernel * n, outer.stride * n, outer.padding * n, 1};
  } else {
    return false;
  }
  outer = {1, 1, 1, 1, 0, 1};
  return true;
}

template <class Strides>
void copy_strides(const Strides& from, const Problem& p, int64_t* to) {
  std::copy(from.begin(), from.end(), to);
  // torch may give an axis of size one any stride; kernels rely on 1.
  if (!p.channels_last) to[4] = 1;
}

// The plain-data form of a problem, and what it points to.
template <class Acc>
struct Prepared {
  Call call{};
  std::vector<Acc> beta, scale, inverse_limit;
  std::vector<Range<int64_t>> windows, over;

  Prepared(const Kernels& kernels, const Problem& p, const Tensor& y, const Tensor* dx) {
    const Acc bound = static_cast<Acc>(sizeof(Acc) == 8 ? kernels.double_bound : kernels.float_bound);
    const int64_t lanes = kernels.vector_bytes / static_cast<int64_t>(sizeof(Acc));
    switch (p.input.scalar_type()) {
      case ScalarType::Double: call.type = Type::float64; break;
      case ScalarType::Half: call.type = Type::float16; break;
      case ScalarType::BFloat16: call.type = Type::bfloat16; break;
      default: call.type = Type::float32;
    }
    call.channels_last = p.channels_last;
    call.x = p.input.const_data_ptr();
    copy_strides(p.input.strides(), p, call.x_stride);
    copy_strides(y.strides(), p, call.y_stride);
    if (dx) copy_strides(dx->strides(), p, call.dx_stride);
    if (p.channels_last) call.y_stride[4] = call.dx_stride[4] = p.channels();

    auto& g = call.geometry = p.geometry;
    const auto follow = [&](int outer, int64_t size) {
      return call.x_stride[outer] == size * call.x_stride[4] &&
             (!dx || call.dx_stride[outer] == size * call.dx_stride[4]);
    };
    if (g.h.size == 1 || follow(3, g.w.size)) {
      if (fold(g.h, g.w) && follow(2, g.w.size)) fold(g.t, g.w);
    }

    const int64_t channels = p.channels();
    // Measured: faster where no two windows share a column.
    call.in_rows = p.channels_last && !p.beta_per_channel && channels <= kMostChannels &&
                   call.x_stride[4] == channels && !g.w.wide() && g.w.disjoint();
    beta.assign(channels + 64 / sizeof(Acc), static_cast<Acc>(p.beta));
    if (p.beta_per_channel) {
      const Acc* given = static_cast<const Acc*>(p.beta_per_channel->const_data_ptr());
      std::copy(given, given + channels, beta.begin());
    }
    for (Acc& b : beta) {
      b = to_finite(b);
      scale.push_back(to_finite(static_cast<Acc>(kLog2e) * b));
      inverse_limit.push_back(std::max(std::abs(scale.back()) / bound, 1 / Limits<Acc>::large));
    }
    call.beta = beta.data(), call.scale = scale.data(), call.inverse_limit = inverse_limit.data();

    // Dense planes (which follow() says of x and dx) of rows that fill less than two vectors; the transposed planes
    // have to stay in the second-level cache.
    call.small_planes = !p.channels_last && p.channels() > 1 && g.w.size < 2 * lanes &&
                        (g.h.size == 1 || follow(3, g.w.size)) && (g.t.size == 1 || follow(2, g.h.size * g.w.size)) &&
                        g.t.size * g.h.size * g.w.size <= (512 << 10) / kernels.vector_bytes;
    // Planes that are pooled whole lie one after the other, like the rows of a plane. As rows, they need no task each.
    const auto is_one = [](const Axis<int64_t>& axis) { return is_identity(axis) && axis.size == 1; };
    call.channels = channels;
    if (!p.channels_last && !p.beta_per_channel && !call.small_planes && is_one(g.t) && is_one(g.h) && g.w.wide()) {
      g.h = {channels, channels, 1, 1, 0, 1};
      for (int64_t* stride : {call.x_stride, call.y_stride, call.dx_stride}) stride[3] = stride[1];
      call.channels = 1;
    }
    if (p.channels_last || call.small_planes) {
      for (int64_t o = 0; o < g.w.out; ++o) windows.push_back(g.w.window(o));
      for (int64_t i = 0; i < g.w.size; ++i) over.push_back(g.w.windows_over(i));
      call.w = {windows.data(), over.data()};
    }
  }
};

// --- tiles -----------------------------------------------------------------------------------------------------------

// How many outputs along each axis, and how many channels, make a tile.
struct Cut {
  int64_t c, t, h, w;
};

Cut cut_of(const Kernels& kernels, const Call& call, int64_t batch, size_t acc_bytes) {
  const auto& g = call.geometry;
  const int64_t channels = call.channels;
  if (call.small_planes) return {kernels.vector_bytes / static_cast<int64_t>(acc_bytes), g.t.out, g.h.out, g.w.out};
  constexpr int64_t kRow = 4096;           // inputs of a row that stay in the first-level cache with their sums
  constexpr int64_t kSums = 384 << 10;     // bytes of sums that stay in the second-level cache
  constexpr int64_t kInputs = 128 << 10;   // inputs that are worth a task
  const auto at_least_one = [](int64_t n) { return std::max<int64_t>(n, 1); };
  const int64_t step_w = g.w.kernel == 0 ? at_least_one(g.w.size / g.w.out) : g.w.stride;

  Cut cut{1, g.t.out, g.h.out, g.w.out};
  if (call.channels_last) cut.c = channels > kMostChannels ? kMostChannels / 2 : channels;
  const int64_t per_w = step_w * cut.c;
  cut.w = std::min(cut.w, at_least_one((call.channels_last && !call.in_rows ? 4 * kRow : kRow) / per_w));
  const bool direct = g.t.disjoint() && g.h.disjoint() && g.t.dilation == 1 && g.h.dilation == 1;
  if (direct) {
    const int64_t inputs = (g.t.size / g.t.out) * (g.h.size / g.h.out) * cut.w * per_w;  // of a row of outputs
    cut.h = std::min(cut.h, at_least_one(kInputs / at_least_one(inputs)));
    cut.t = std::min(cut.t, at_least_one(kInputs / at_least_one(inputs * cut.h)));
  } else {
    const int64_t rows = at_least_one(kSums / static_cast<int64_t>(cut.w * cut.c * acc_bytes * (call.backward ? 3 : 2)));
    cut.t = std::min({cut.t, rows, int64_t{16}});
    cut.h = std::min(cut.h, at_least_one(rows / cut.t));
  }

  // More tiles, if there are too few to keep all threads busy.
  const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
  const auto tiles = [&] {
    return batch * ceil_div(channels, cut.c) * ceil_div(g.t.out, cut.t) * ceil_div(g.h.out, cut.h) *
           ceil_div(g.w.out, cut.w);
  };
  const bool worth_it = batch * channels * g.t.size * g.h.size * g.w.size > kInputs / 4;
  while (worth_it && tiles() < wanted) {
    if (cut.h > 1) cut.h = (cut.h + 1) / 2;
    else if (cut.t > 1) cut.t = (cut.t + 1) / 2;
    else if (cut.w > (call.in_rows ? 8 : 64)) cut.w = (cut.w + 1) / 2;
    else if (!call.in_rows && cut.c > 32 && 4 * tiles() < wanted) cut.c = (cut.c / 2 + 31) / 32 * 32;  // still whole cache lines
    else break;
  }
  return cut;
}

// One buffer for each thread, kept for the next call.
char* scratch_of(size_t bytes) {
  constexpr std::align_val_t kAlign{64};
  struct Free {
    void operator()(char* p) const { ::operator delete(p, kAlign); }
  };
  thread_local std::unique_ptr<char, Free> memory;
  thread_local size_t size = 0;
#ifdef __SANITIZE_ADDRESS__
  size = 0;  // allocate exactly the bytes asked for, so that a step beyond them is seen
#endif
  if (size < bytes) {
    memory.reset();
    size = 0;  // in case the allocation fails
    memory.reset(static_cast<char*>(::operator new(bytes, kAlign)));
    size = bytes;
  }
  return memory.get();
}

// Runs all tiles; returns dL/dbeta of each channel, if that is asked for.
std::vector<double> run_tiles(const Kernels& kernels, const Call& call, int64_t batch, size_t acc_bytes) {
  const auto& g = call.geometry;
  const int64_t channels = call.channels;
  const Cut cut = cut_of(kernels, call, batch, acc_bytes);
  const int64_t nc = ceil_div(channels, cut.c), nt = ceil_div(g.t.out, cut.t), nh = ceil_div(g.h.out, cut.h),
                nw = ceil_div(g.w.out, cut.w), tiles = batch * nc * nt * nh * nw;
  std::vector<double> partial(call.beta_grad ? tiles * cut.c : 0, 0.);
  const int64_t inputs = batch * channels * g.t.size * g.h.size * g.w.size;
  const int64_t grain = tiles == 0 ? 1 : std::max<int64_t>(1, 32768 * tiles / std::max<int64_t>(inputs, 1));
  const auto span = [](int64_t i, int64_t length, int64_t end) {
    return Span{i * length, std::min((i + 1) * length, end)};
  };
  torch::stable::parallel_for(0, tiles, grain, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      int64_t rest = i;
      const auto next = [&](int64_t n) {
        const int64_t digit = rest % n;
        rest /= n;
        return digit;
      };
      // Tiles that are neighbours in memory follow each other.
      const int64_t iw = next(nw), ih = next(nh), first = next(call.channels_last ? nc : nt);
      const int64_t second = next(call.channels_last ? nt : nc);
      const int64_t ic = call.channels_last ? first : second, it = call.channels_last ? second : first;
      const Tile tile{rest, span(ic, cut.c, channels), span(it, cut.t, g.t.out), span(ih, cut.h, g.h.out),
                      span(iw, cut.w, g.w.out)};
      kernels.run(call, tile, scratch_of(kernels.scratch_bytes(call, tile)),
                  call.beta_grad ? partial.data() + i * cut.c : nullptr);
    }
  });

  // Added in a fixed order, whichever thread did what: results do not change from run to run.
  std::vector<double> total(call.beta_grad ? channels : 0, 0.);
  for (int64_t i = 0; call.beta_grad && i < tiles; ++i) {
    const int64_t ic = call.channels_last ? i / (nw * nh) % nc : i / (nw * nh * nt) % nc;
    const Span c = span(ic, cut.c, channels);
    for (int64_t k = 0; k < c.size(); ++k) total[c.begin + k] += partial[i * cut.c + k];
  }
  return total;
}

// --- the operators ---------------------------------------------------------------------------------------------------

template <class Acc>
Tensor forward_of(const Problem& p) {
  const Kernels& k = kernels();
  Tensor y = p.empty_output();
  Prepared<Acc> prepared(k, p, y, nullptr);
  prepared.call.result = y.mutable_data_ptr();
  run_tiles(k, prepared.call, p.batch(), sizeof(Acc));
  return y;
}

template <class Acc>
std::tuple<Tensor, Tensor> backward_of(const Problem& p, const Tensor& grad, bool input_grad, bool beta_grad) {
  const Kernels& k = kernels();
  Tensor dx = input_grad ? p.empty_input_grad() : empty_row(p.input, 0, p.input.scalar_type());
  Tensor dbeta = empty_row(p.input, beta_grad ? p.channels() : 0, accumulation_type(p.input));
  Prepared<Acc> prepared(k, p, grad, input_grad ? &dx : nullptr);
  Call& call = prepared.call;
  call.backward = true, call.input_grad = input_grad, call.beta_grad = beta_grad;
  call.grad = grad.const_data_ptr();
  call.result = input_grad ? dx.mutable_data_ptr() : nullptr;
  const std::vector<double> total = run_tiles(k, call, p.batch(), sizeof(Acc));
  std::copy(total.begin(), total.end(), static_cast<Acc*>(dbeta.mutable_data_ptr()));
  return {dx, dbeta};
}

Tensor forward(const Problem& p) {
  return accumulation_type(p.input) == ScalarType::Double ? forward_of<double>(p) : forward_of<float>(p);
}

std::tuple<Tensor, Tensor> backward(const Problem& p, const Tensor& grad, bool input_grad, bool beta_grad) {
  return accumulation_type(p.input) == ScalarType::Double ? backward_of<double>(p, grad, input_grad, beta_grad)
                                                          : backward_of<float>(p, grad, input_grad, beta_grad);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(softpool3d, CPU, m) { Operators<forward, backward>::implement(m); }

STABLE_TORCH_LIBRARY_IMPL(softpool3d, CompositeExplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&cpu_level));
  m.impl("limit_cpu_level", TORCH_BOX(&limit_cpu_level));
}

}  // namespace softpool3d
