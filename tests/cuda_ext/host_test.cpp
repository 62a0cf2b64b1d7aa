// Runs the CUDA kernels on the host over random pools and compares them with loops that follow the definition.
//
//     host_test <seed> <cases>
//
// for the dtype SOFTPOOL_TEST_TYPE, and prints how often each kernel ran. A wrong value ends with exit code 1 and the
// case that shows it; a wrong index or a race is the sanitizers' to report.

#include "launch_shim.h"
#include "soft_pool_launch.cuh"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

using namespace softpool3d;
using softpool3d::cuda::AccOf;
using softpool3d::cuda::Call;
using softpool3d::cuda::Launcher;
using Half = torch::headeronly::Half;
using BFloat16 = torch::headeronly::BFloat16;

namespace {

// The definition is computed in this: float64 is tested too, up to its largest values.
using Real = long double;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Memory of exactly this many elements, `shift` of them past an alignment of 64 bytes. Beyond lies poison.
template <class T>
class Buffer {
 public:
  Buffer(int64_t size, int64_t shift) : size_(size) {
    const size_t bytes = (size + shift) * sizeof(T), whole = (bytes + 63) / 64 * 64 + 64;
    memory_ = static_cast<unsigned char*>(aligned_alloc(64, whole));
    memset(memory_, 0x7b, whole);
    data_ = reinterpret_cast<T*>(memory_) + shift;
    ASAN_POISON_MEMORY_REGION(memory_, shift * sizeof(T));
    ASAN_POISON_MEMORY_REGION(memory_ + bytes, whole - bytes);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, (size_ * sizeof(T) + 63) / 64 * 64 + 64);
    free(memory_);
  }

  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  int64_t size_;
  unsigned char* memory_;
  T* data_;
};

struct Case {
  int64_t batch, channels, size[3], out[3], kernel[3], stride[3], padding[3], dilation[3];
  bool adaptive, channels_last, ceil_mode, per_channel, wide_indices;
  int64_t gap[3], shift;  // room between rows, slabs and planes of x; misalignment of everything
  double beta, scale;  // scale 0: as large as the dtype allows
  double offset;       // of all values
  double slope;        // the size of the output's gradient
  bool lowest;         // some values are the lowest finite ones
  int special;         // one in so many values is NaN or infinite; 0: none

  std::string text() const {
    const auto triple = [](const int64_t* v) {
      return "(" + std::to_string(v[0]) + "," + std::to_string(v[1]) + "," + std::to_string(v[2]) + ")";
    };
    return "batch " + std::to_string(batch) + " channels " + std::to_string(channels) + " size " + triple(size) +
           " out " + triple(out) + (adaptive ? " adaptive" : " kernel " + triple(kernel) + " stride " + triple(stride) +
           " padding " + triple(padding) + " dilation " + triple(dilation)) + (ceil_mode ? " ceil" : "") +
           (channels_last ? " channels_last" : "") + (per_channel ? " beta per channel" : "") +
           (wide_indices ? " 64-bit" : "") + " gap " + triple(gap) + " shift " + std::to_string(shift) + " beta " +
           std::to_string(beta) + " scale " + std::to_string(scale) + " offset " + std::to_string(offset) +
           " slope " + std::to_string(slope) + " special " + std::to_string(special) + (lowest ? " lowest" : "");
  }
};

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  bool one_in(int64_t n) { return between(1, n) == 1; }
  double normal() { return std::normal_distribution<double>()(engine_); }
  template <class T>
  T one_of(std::initializer_list<T> values) { return values.begin()[between(0, values.size() - 1)]; }

 private:
  std::mt19937_64 engine_;
};

// The window along one axis, from the definition: its positions inside the input.
std::vector<int64_t> positions(const Case& c, int axis, int64_t o) {
  std::vector<int64_t> inside;
  if (c.adaptive) {
    const double ratio = static_cast<double>(c.size[axis]) / c.out[axis];
    for (int64_t i = 0; i < c.size[axis]; ++i)
      if (i >= static_cast<int64_t>(std::floor(o * ratio + 1e-9)) &&
          i < static_cast<int64_t>(std::ceil((o + 1) * ratio - 1e-9)))
        inside.push_back(i);
  } else {
    for (int64_t k = 0; k < c.kernel[axis]; ++k) {
      const int64_t i = o * c.stride[axis] - c.padding[axis] + k * c.dilation[axis];
      if (i >= 0 && i < c.size[axis]) inside.push_back(i);
    }
  }
  return inside;
}

// Sets the sizes of the output, unless it would be without positions.
bool has_output(Case& c) {
  try {
    const auto g = c.adaptive
                       ? adaptive_geometry(c.size, c.out)
                       : pool_geometry(c.channels, c.size, c.kernel, c.stride, c.padding, c.dilation, c.ceil_mode);
    c.out[0] = g.t.out, c.out[1] = g.h.out, c.out[2] = g.w.out;
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

Case random_case(Random& random) {
  // Kernels with a path of their own come as often as all others, and so do tensors that can be read 16 bytes at a time.
  static const int64_t known[][3] = {{2, 2, 2}, {1, 2, 2}, {1, 3, 3}, {3, 3, 3}, {3, 3, 3}, {2, 1, 1}};
  while (true) {
    Case c = {};
    const bool tidy = random.one_in(2), large = random.one_in(8), whole = large && random.one_in(2);
    const bool plain = !large && !random.one_in(3);
    c.batch = random.between(1, 2);
    c.channels = tidy ? random.one_of<int64_t>({8, 16, 24}) : random.between(1, 12);
    c.channels_last = c.channels > 1 && random.one_in(2);
    c.adaptive = !plain && random.one_in(3);
    c.ceil_mode = random.one_in(4);
    c.per_channel = random.one_in(3);
    c.wide_indices = random.one_in(6);
    c.shift = tidy || random.one_in(2) ? 0 : 1;
    c.beta = random.one_of({0.0, 1.0, 1.0, -1.5, 0.3, 50.0});
    c.scale = random.one_of({1.0, 1.0, 1.0, 30.0, 0.0});
    c.offset = random.one_in(3) ? random.one_of({-200.0, -30.0, -30.0, 80.0}) : 0;
    c.slope = c.scale > 0 && random.one_in(4) ? 1e30 : 1;
    c.special = random.one_in(6) ? 20 : 0;
    c.lowest = random.one_in(8);
    const auto& kernel = known[random.between(0, 5)];
    const bool no_padding = plain && random.one_in(5), tiled = !plain && !large && random.one_in(3);
    const int64_t longest = kernel[0] == 3 && random.one_in(2) ? 1 : 2;  // stride
    for (int a = 0; a < 3; ++a) {
      c.size[a] = large ? random.between(8, 10) : random.between(1, a == 2 ? 16 : 8);
      if (a == 2 && tidy) c.size[a] = random.one_of<int64_t>({8, 16});
      c.gap[a] = whole || random.one_in(2) ? 0 : tidy ? 8 : random.between(1, 4);
      c.kernel[a] = plain ? kernel[a] : large ? 8 : random.between(1, 4);
      c.stride[a] = plain ? min_of<int64_t>(kernel[a], longest) : random.between(1, 4);
      c.dilation[a] = !plain && !large && random.one_in(3) ? random.between(2, 3) : 1;
      c.padding[a] = random.one_in(2) || plain ? (c.kernel[a] - 1) / 2 : random.between(0, c.kernel[a] / 2);
      if (no_padding) c.padding[a] = 0;
      if (tiled) c.stride[a] = c.kernel[a], c.padding[a] = 0, c.dilation[a] = 1;
      if (whole) c.kernel[a] = c.stride[a] = c.size[a], c.padding[a] = 0;
      c.out[a] = c.adaptive ? random.between(1, large ? 1 : c.size[a] + 1) : 0;
    }
    if (has_output(c)) return c;
  }
}

// Windows for teams of threads, of 16 to some thousand values: whole planes, or tiles, or anything close to them.
Case random_head(Random& random) {
  while (true) {
    Case c = random_case(random);
    const bool tidy = random.one_in(2), tiles = random.one_in(3), global = random.one_in(3);
    c.channels = tidy ? random.one_of<int64_t>({8, 16, 24}) : c.channels;
    c.channels_last &= c.channels > 1;
    c.shift = tidy ? 0 : c.shift;
    c.adaptive = random.one_in(3);
    for (int a = 0; a < 3; ++a) {
      c.size[a] = a == 0 ? random.between(1, 8) : tidy ? random.one_of<int64_t>({4, 8, 12}) : random.between(4, 11);
      c.gap[a] = random.one_in(4) ? (tidy ? 8 : random.between(1, 4)) : 0;
      c.kernel[a] = global || (a > 0 && !tiles) ? c.size[a] : a == 0 ? random.between(1, 3) : 4;
      c.stride[a] = random.one_in(8) ? random.between(1, c.kernel[a]) : c.kernel[a];
      c.padding[a] = random.one_in(8) ? c.kernel[a] / 2 : 0;
      c.dilation[a] = 1;
      c.out[a] = a > 0 && !tiles ? 1 : random.between(1, 2);
    }
    if (has_output(c)) return c;
  }
}

template <class T>
struct Tolerance;
template <>
struct Tolerance<double> {
  static constexpr double value = 1e-12;
};
template <>
struct Tolerance<float> {
  static constexpr double value = 4e-6;
};
template <>
struct Tolerance<Half> {
  static constexpr double value = 1e-3;
};
template <>
struct Tolerance<BFloat16> {
  static constexpr double value = 8e-3;
};

bool close(double got, Real wanted, Real tolerance, Real size) {
  if (std::isnan(wanted)) return std::isnan(got);
  if (std::isinf(wanted)) return got == wanted;
  return std::fabs(got - wanted) <= tolerance * size;
}

template <class T>
bool check(const Case& c, Random& random) {
  using Acc = AccOf<T>;
  // Strides of x in elements, for n, c, t, h, w.
  const int64_t inner = c.channels_last ? c.channels : 1;
  int64_t stride[5];
  stride[4] = inner;
  stride[3] = c.size[2] * inner + c.gap[2] * inner;
  stride[2] = c.size[1] * stride[3] + c.gap[1];
  const int64_t plane = c.size[0] * stride[2] + c.gap[0];
  stride[1] = c.channels_last ? 1 : plane;
  stride[0] = c.channels_last ? plane : c.channels * plane;
  const int64_t counts[5] = {c.batch, c.channels, c.size[0], c.size[1], c.size[2]};
  int64_t last = 0;
  for (int d = 0; d < 5; ++d) last += (counts[d] - 1) * stride[d];
  const int64_t inputs = c.batch * c.channels * c.size[0] * c.size[1] * c.size[2];
  const int64_t outputs = c.batch * c.channels * c.out[0] * c.out[1] * c.out[2];

  Buffer<T> x(last + 1, c.shift), y(outputs, c.shift), y_grad(outputs, c.shift), x_grad(inputs, c.shift);
  Buffer<Acc> betas(c.channels, 0), betas_grad(c.channels, 0);
  // What lies in the gaps must not matter.
  for (int64_t i = 0; i <= last; ++i) x[i] = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  const auto x_at = [&](int64_t n, int64_t ch, int64_t t, int64_t h, int64_t w) -> T& {
    return x[n * stride[0] + ch * stride[1] + t * stride[2] + h * stride[3] + w * stride[4]];
  };
  const auto dense = [&](const int64_t* size, int64_t n, int64_t ch, int64_t t, int64_t h, int64_t w) {
    const int64_t in_plane = (t * size[1] + h) * size[2] + w, volume = size[0] * size[1] * size[2];
    return c.channels_last ? (n * volume + in_plane) * c.channels + ch : (n * c.channels + ch) * volume + in_plane;
  };
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t ch = 0; ch < c.channels; ++ch)
      for (int64_t t = 0; t < c.size[0]; ++t)
        for (int64_t h = 0; h < c.size[1]; ++h)
          for (int64_t w = 0; w < c.size[2]; ++w) {
            const double most = static_cast<double>(static_cast<Acc>(std::numeric_limits<T>::max()));
            double value = random.normal();
            value = c.scale > 0 ? c.offset + c.scale * value : std::clamp(most * value, -most, most);
            if (c.special && random.one_in(c.special))
              value = random.one_of({std::nan(""), kInfinity, -kInfinity, -kInfinity});
            if (c.lowest && random.one_in(8)) value = -most;
            x_at(n, ch, t, h, w) = static_cast<T>(static_cast<Acc>(value));
          }
  for (int64_t i = 0; i < outputs; ++i) y_grad[i] = static_cast<T>(static_cast<Acc>(c.slope * random.normal()));
  for (int64_t ch = 0; ch < c.channels; ++ch)
    betas[ch] = static_cast<Acc>(c.per_channel ? random.one_of({0.0, 1.0, -0.7, 3.0, kInfinity}) : c.beta);

  {
    std::vector<std::unique_ptr<Buffer<unsigned char>>> workspaces;
    Call<T> call;
    call.axes = c.adaptive ? adaptive_geometry(c.size, c.out)
                           : pool_geometry(c.channels, c.size, c.kernel, c.stride, c.padding, c.dilation, c.ceil_mode);
    call.batch = c.batch;
    call.channels = c.channels;
    call.channels_last = c.channels_last;
    call.x = x.data();
    memcpy(call.strides, stride, sizeof stride);
    call.betas = c.per_channel ? betas.data() : nullptr;
    call.beta = c.beta;
    if (c.wide_indices) call.index_limit = 1;
    call.workspace = [&](int64_t bytes) {
      workspaces.push_back(std::make_unique<Buffer<unsigned char>>(bytes, 0));
      return workspaces.back()->data();
    };
    const Launcher<T> launcher(call);
    launcher.forward(y.data());
    launcher.backward(y_grad.data(), x_grad.data());
    launcher.beta_gradient(y_grad.data(), betas_grad.data());
  }

  const auto wrong = [&](const char* what, int64_t i, double got, Real wanted) {
    std::printf("%s[%lld] is %.9g, not %.9g\n%s\n", what, static_cast<long long>(i), got, static_cast<double>(wanted), c.text().c_str());
    return false;
  };
  std::vector<Real> gradient(inputs, 0), gradient_size(inputs, 1), beta_gradient(c.channels, 0),
      beta_size(c.channels, 1e-30);
  for (int64_t n = 0; n < c.batch; ++n)
    for (int64_t ch = 0; ch < c.channels; ++ch)
      for (int64_t ot = 0; ot < c.out[0]; ++ot)
        for (int64_t oh = 0; oh < c.out[1]; ++oh)
          for (int64_t ow = 0; ow < c.out[2]; ++ow) {
            const Real beta = static_cast<double>(to_finite(betas[ch]));
            std::vector<Real> values;
            std::vector<int64_t> where;
            for (int64_t t : positions(c, 0, ot))
              for (int64_t h : positions(c, 1, oh))
                for (int64_t w : positions(c, 2, ow)) {
                  values.push_back(static_cast<double>(static_cast<Acc>(x_at(n, ch, t, h, w))));
                  where.push_back(dense(c.size, n, ch, t, h, w));
                }
            Real top = -std::numeric_limits<Real>::infinity(), largest = 0, smallest_x = kInfinity, largest_x = -kInfinity;
            bool nan = false, plus = false, finite = false;
            for (Real v : values) {
              nan |= std::isnan(v), plus |= v == kInfinity, finite |= std::isfinite(v);
              if (!std::isfinite(v)) continue;
              top = std::max(top, beta * v), largest = std::max(largest, std::fabs(v));
              smallest_x = std::min(smallest_x, v), largest_x = std::max(largest_x, v);
            }
            Real sum = 0, moment = 0, square = 0, mean;
            for (Real v : values)
              if (std::isfinite(v)) sum += std::exp(beta * v - top), moment += std::exp(beta * v - top) * v;
            mean = nan ? std::nan("") : plus ? kInfinity : finite ? moment / sum : values.empty() ? 0.0L : -kInfinity;
            for (Real v : values)
              if (std::isfinite(v)) square += std::exp(beta * v - top) / sum * (v - mean) * (v - mean);

            const int64_t o = dense(c.out, n, ch, ot, oh, ow);
            const double got = static_cast<double>(static_cast<Acc>(y[o])), tolerance = Tolerance<T>::value;
            if (!close(got, mean, tolerance, largest + 1e-30)) return wrong("y", o, got, mean);
            const Real g = static_cast<double>(static_cast<Acc>(y_grad[o]));
            if (std::isinf(mean)) continue;  // no derivative, and none passed on
            beta_gradient[ch] += g * (nan ? mean : finite ? square : 0.0L);
            if (finite) beta_size[ch] += std::fabs(g) * (largest_x - smallest_x) * (largest_x - smallest_x);
            for (size_t i = 0; i < values.size(); ++i) {
              if (std::isinf(values[i])) continue;
              const Real weight = std::exp(beta * values[i] - top) / sum;
              gradient[where[i]] += g * weight * (1 + beta * (values[i] - mean));
              gradient_size[where[i]] += std::fabs(g) * (1 + std::fabs(beta) * largest);
            }
          }
  const double tolerance = Tolerance<T>::value;
  for (int64_t i = 0; i < inputs; ++i) {
    const double got = static_cast<double>(static_cast<Acc>(x_grad[i]));
    // exp's argument is rounded once more than in the definition: relative to its size, up to 50 * 100 here.
    if (!close(got, gradient[i], 4 * tolerance, gradient_size[i])) return wrong("x_grad", i, got, gradient[i]);
  }
  for (int64_t ch = 0; ch < c.channels; ++ch) {
    const double got = static_cast<double>(betas_grad[ch]);
    // The square of the largest float32 is none.
    if (c.scale > 0 && !c.lowest && !close(got, beta_gradient[ch], 20 * Tolerance<Acc>::value, beta_size[ch]))
      return wrong("beta_grad", ch, got, beta_gradient[ch]);
  }
  return true;
}

// Windows so far apart that more of them lie over a position than shared memory holds stats for.
Case widely_dilated() {
  Case c = {};
  c.batch = c.channels = 1;
  for (int a = 0; a < 3; ++a) c.size[a] = 33, c.kernel[a] = 2, c.dilation[a] = 16, c.stride[a] = 1, c.out[a] = 17;
  c.beta = c.scale = c.slope = 1;
  return c;
}

// Large windows that overlap, with channels beside each other.
Case large_over_each_other(bool wide_indices) {
  Case c = {};
  c.batch = 1, c.channels = 8, c.channels_last = true, c.wide_indices = wide_indices;
  for (int a = 0; a < 3; ++a) c.size[a] = 10, c.kernel[a] = 8, c.stride[a] = c.dilation[a] = 1, c.out[a] = 3;
  c.beta = c.scale = c.slope = 1;
  return c;
}

template <class T>
int run(uint64_t seed, int64_t cases) {
  Random random(seed);
  if (!check<T>(widely_dilated(), random)) return 1;
  for (const bool wide_indices : {false, true})
    if (!check<T>(large_over_each_other(wide_indices), random)) return 1;
  for (int64_t i = 0; i < cases; ++i)
    if (!check<T>(random_case(random), random)) return 1;
  for (int64_t i = 0; i < cases / 2; ++i)
    if (!check<T>(random_head(random), random)) return 1;
  for (const auto& [name, count] : shim::launches()) std::printf("%lld %s\n", static_cast<long long>(count), name.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  return run<SOFTPOOL_TEST_TYPE>(std::stoull(argv[1]), std::stoll(argv[2]));
}
