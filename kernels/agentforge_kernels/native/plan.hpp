// Driver of a whole model: the steps of a DecodePlan (agentforge.runtime.plan) in one call a token, over buffers,
// caches and weights that Python owns. A plan arrives as records of kRecord 64-bit numbers, addresses included;
// Python has checked shapes (runtime/native.py).
#pragma once

#include <vector>

#include "activation_sparse.hpp"
#include "block_sparse.hpp"
#include "plan_floats.hpp"
#include "quantize.hpp"

namespace agentforge {

enum StepKind : int64_t {
  kEmbedFloat = 0,
  kEmbedInt8 = 1,
  kNormStep = 2,
  kLinearTernary = 3,
  kLinearInt8 = 4,
  kLinearFloat = 5,
  kAttendStep = 6,
  kRememberStep = 7,
  kBlendStep = 8,
  kActivateStep = 9,
};

constexpr int64_t kRecord = 32;  // [0] kind, [1..27] whole numbers and addresses, [28..31] doubles as bits
constexpr int64_t kDoubles = 28;

struct PlanStep {
  int64_t field[kRecord];

  int64_t at(int index) const { return field[index]; }
  template <typename T>
  T* address(int index) const {
    return reinterpret_cast<T*>(field[index]);
  }
  float number(int index) const {
    double value;
    std::memcpy(&value, &field[kDoubles + index], sizeof value);
    return static_cast<float>(value);
  }
  // A span: address of its first column and floats between tokens, in two fields.
  float* span(int index, int64_t token) const { return address<float>(index) + token * field[index + 1]; }
};

struct PlanTokens {
  int64_t count;
  const int32_t* ids;
  const int32_t* sequence;
  const int32_t* position;
};

// What belongs to all steps; addresses of tensors that Python keeps alive.
struct PlanShape {
  int64_t width;       // of the residual stream
  float* x;            // [tokens][width]
  float* h;
  float* u;
  float* latent;
  float* answer;
  float* logit;        // [tokens]
  float* scratch;      // [scratch_floats] for attention scores, memory vectors, turned queries
  const float* cos;    // [context][head width]
  const float* sin;
  float* const* keys;    // [caches]: [sequences][window][width]
  float* const* values;
  int64_t recursion_steps;  // 0: no recursion
  int64_t latent_steps;
  int64_t first_cache;
  const float* inject_prelude;
  const float* inject_answer;
  float threshold;
};

class Plan {
 public:
  // sections[0]: prelude, then the core's blocks, then update, halt, head: numbers of records each.
  Plan(const PlanShape& shape, const int64_t* records, const int64_t* sections, int64_t section_count)
      : shape_(shape) {
    for (int64_t section = 0; section < section_count; ++section) {
      sections_.emplace_back();
      for (int64_t i = 0; i < sections[section]; ++i, records += kRecord) {
        PlanStep step;
        std::memcpy(step.field, records, sizeof step.field);
        sections_.back().push_back(step);
      }
    }
  }

  // Reads all tokens, fills steps_taken [count], and leaves `answer` for the head. Returns the first token that
  // met NaN or infinity, or kAllFinite.
  int64_t read(const PlanTokens& tokens, int32_t* steps_taken, int threads) {
    tokens_ = tokens;
    threads_ = threads;
    bad_ = kAllFinite;
    run(sections_.front(), 0, tokens.count);
    if (shape_.recursion_steps) {
      recurse(steps_taken);
    } else {
      std::memcpy(shape_.answer, shape_.x, static_cast<size_t>(tokens.count * shape_.width) * 4);
    }
    return bad_;
  }

  // The head over the first `count` rows of `answer`.
  int64_t head(int64_t count, int threads) {
    threads_ = threads;
    bad_ = kAllFinite;
    run(sections_.back(), 0, count);
    return bad_;
  }

 private:
  PlanShape shape_;
  std::vector<std::vector<PlanStep>> sections_;
  PlanTokens tokens_{};
  int threads_ = 1;
  int64_t bad_ = kAllFinite;
  std::vector<uint8_t> active_;
  std::vector<float> survival_, frozen_latent_, frozen_answer_, added_;

  int64_t block_count() const { return static_cast<int64_t>(sections_.size()) - 4; }
  const std::vector<PlanStep>& block(int64_t index) const { return sections_[static_cast<size_t>(1 + index)]; }
  const std::vector<PlanStep>& update() const { return sections_[sections_.size() - 3]; }
  const std::vector<PlanStep>& halt() const { return sections_[sections_.size() - 2]; }

  void inject(bool with_latent, bool with_answer) {
    const int64_t n = shape_.width;
    for (int64_t token = 0; token < tokens_.count; ++token) {
      const float* const h = shape_.h + token * n;
      const float* const latent = shape_.latent + token * n;
      const float* const answer = shape_.answer + token * n;
      float* const u = shape_.u + token * n;
      for (int64_t i = 0; i < n; ++i) {
        float value = shape_.inject_prelude[i] * h[i];
        if (with_latent) value += latent[i];
        if (with_answer) value += shape_.inject_answer[i] * answer[i];
        u[i] = value;
      }
    }
  }

  void restore_halted(float* now, const float* before) const {
    const size_t bytes = static_cast<size_t>(shape_.width) * 4;
    for (int64_t token = 0; token < tokens_.count; ++token)
      if (!active_[static_cast<size_t>(token)])
        std::memcpy(now + token * shape_.width, before + token * shape_.width, bytes);
  }

  void recurse(int32_t* steps_taken) {
    const int64_t count = tokens_.count, floats = count * shape_.width;
    const size_t bytes = static_cast<size_t>(floats) * 4;
    active_.assign(static_cast<size_t>(count), 1);
    survival_.assign(static_cast<size_t>(count), 1.0f);
    frozen_latent_.resize(static_cast<size_t>(floats));
    frozen_answer_.resize(static_cast<size_t>(floats));
    std::memset(shape_.latent, 0, bytes);
    std::memset(shape_.answer, 0, bytes);
    std::memcpy(shape_.h, shape_.x, bytes);
    std::memset(steps_taken, 0, static_cast<size_t>(count) * 4);
    int64_t left = count;
    for (int64_t step = 0; step < shape_.recursion_steps; ++step) {
      if (left == 0) {
        serve_later_tokens(step);
        return;
      }
      std::memcpy(frozen_latent_.data(), shape_.latent, bytes);
      std::memcpy(frozen_answer_.data(), shape_.answer, bytes);
      for (int64_t inner = 0; inner < shape_.latent_steps; ++inner) {
        inject(step > 0 || inner > 0, step > 0);
        std::memcpy(shape_.x, shape_.u, bytes);
        const int64_t pass = step * shape_.latent_steps + inner;
        for (int64_t i = 0; i < block_count(); ++i) {
          run(block(i), shape_.first_cache + pass * block_count(), count);
          if (left < count) restore_halted(shape_.x, shape_.u);
        }
        std::memcpy(shape_.latent, shape_.x, bytes);
        if (left < count) restore_halted(shape_.latent, frozen_latent_.data());
      }
      run(update(), 0, count);
      if (left < count) restore_halted(shape_.answer, frozen_answer_.data());
      for (int64_t token = 0; token < count; ++token) steps_taken[token] += active_[static_cast<size_t>(token)];
      if (step + 1 < shape_.recursion_steps) {
        run(halt(), 0, count);
        left = 0;
        for (size_t token = 0; token < static_cast<size_t>(count); ++token) {
          survival_[token] *= 1.0f - floats::sigmoid(shape_.logit[token]);
          active_[token] = active_[token] && 1.0f - survival_[token] < shape_.threshold;
          left += active_[token];
        }
      }
    }
  }

  // Everybody has halted: u is the same in all passes that are left, and only its keys and values are wanted.
  void serve_later_tokens(int64_t step) {
    inject(true, true);
    const int64_t blocks = block_count(), passes = shape_.recursion_steps * shape_.latent_steps;
    for (int64_t i = 0; i < blocks; ++i) {
      std::memcpy(shape_.x, shape_.u, static_cast<size_t>(tokens_.count * shape_.width) * 4);
      for (const PlanStep& s : block(i)) {
        if (s.at(0) != kAttendStep) {
          execute(s, 0, tokens_.count);
          continue;
        }
        for (int64_t token = 0; token < tokens_.count; ++token) {
          turn(s, token);
          for (int64_t pass = step * shape_.latent_steps; pass < passes; ++pass)
            keep(s, token, s.at(14) + shape_.first_cache + pass * blocks);
        }
        break;
      }
    }
  }

  void run(const std::vector<PlanStep>& steps, int64_t first_cache, int64_t count) {
    for (const PlanStep& step : steps) execute(step, first_cache, count);
  }

  void execute(const PlanStep& s, int64_t first_cache, int64_t count) {
    const floats::FloatKernels& kernels = floats::float_kernels();
    switch (s.at(0)) {
      case kEmbedFloat:  // table, width, out span
        for (int64_t t = 0; t < count; ++t)
          std::memcpy(s.span(3, t), s.address<const float>(1) + tokens_.ids[t] * s.at(2),
                      static_cast<size_t>(s.at(2)) * 4);
        return;
      case kEmbedInt8:  // table, width, out span, scale
        for (int64_t t = 0; t < count; ++t) {
          const int8_t* const row = s.address<const int8_t>(1) + tokens_.ids[t] * s.at(2);
          const float scale = s.address<const float>(5)[tokens_.ids[t]];
          float* const out = s.span(3, t);
          for (int64_t i = 0; i < s.at(2); ++i) out[i] = static_cast<float>(row[i]) * scale;
        }
        return;
      case kNormStep:  // src span, width, weight, out span; epsilon
        for (int64_t t = 0; t < count; ++t)
          kernels.norm(s.span(1, t), s.address<const float>(4), s.number(0), s.at(3), s.span(5, t));
        return;
      case kLinearTernary:
      case kLinearInt8: linear(s, count); return;
      case kLinearFloat:  // src span, columns, rows, blocks, out span, residual span (0: none), bias, sigmoid
        for (int64_t t = 0; t < count; ++t)
          kernels.dense({s.address<const float>(5), s.address<const float>(10), s.at(8) ? s.span(8, t) : nullptr,
                         s.at(4), s.at(3), s.at(11) != 0},
                        s.span(1, t), s.span(6, t));
        return;
      case kAttendStep: attend(s, first_cache, count); return;
      case kRememberStep: remember(s, count); return;
      case kBlendStep:  // mixed span, gate span, read span, width
        for (int64_t t = 0; t < count; ++t) kernels.blend(s.span(1, t), s.span(3, t), s.span(5, t), s.at(7));
        return;
      case kActivateStep:  // gate span, up span, out span, width, squared ReLU
        for (int64_t t = 0; t < count; ++t)
          kernels.activate(s.span(1, t), s.span(3, t), s.span(5, t), s.at(7), s.at(8) != 0);
        return;
      default: return;
    }
  }

  // src span, columns, rows, weights, scale, scale per row, out span, residual span (0: none),
  // then other forms for few tokens: [13] most tokens, column blocks; [15] most tokens, tiles, index, start, count.
  void linear(const PlanStep& s, int64_t count) {
    const int64_t columns = s.at(3), rows = s.at(4);
    // Kernels take tokens that lie one behind the other.
    const bool together = s.at(2) == columns && s.at(9) == rows && (!s.at(10) || s.at(11) == rows);
    const int64_t step = together ? count : 1;
    for (int64_t t = 0; t < count; t += step) {
      const FloatInput input = {s.span(1, t), kFloat32, columns, nullptr, 0.0};
      const Epilogue epilogue = {s.address<const float>(6), s.at(7) != 0, residual(s, t, step * rows),
                                 s.span(8, t), rows};
      int64_t bad;
      if (s.at(0) == kLinearTernary && step <= s.at(13)) {
        bad = multiply(ColumnSparseCall{&sparse_kernels(), s.address<const uint8_t>(14), rows, columns, step,
                                        epilogue, threads_},
                       quantised(input, step));
      } else if (s.at(0) == kLinearTernary && step <= s.at(15)) {
        bad = multiply(BlockSparseCall{&dense_kernels(),
                                       &sparse_kernels(),
                                       {s.address<const uint8_t>(16), s.address<const int32_t>(17),
                                        s.address<const int32_t>(18)},
                                       rows, columns, step, epilogue, threads_},
                       quantised(input, step));
      } else {
        const DenseKernels& kernels = s.at(0) == kLinearTernary ? dense_kernels() : int8_kernels();
        const DenseCall call = {&kernels, s.address<const uint8_t>(5), rows, columns, step, epilogue, threads_};
        bad = s.at(0) == kLinearTernary ? multiply(call, input) : multiply(call, quantised(input, step));
      }
      if (bad != kAllFinite && (bad_ == kAllFinite || t + bad < bad_)) bad_ = t + bad;
    }
  }

  // What is added to tokens from `t` on: a copy, since kernels may compute a token twice (tiles that overlap), and a
  // sum in its own place would be added to twice.
  const float* residual(const PlanStep& s, int64_t t, int64_t count) {
    if (!s.at(10)) return nullptr;
    if (static_cast<int64_t>(added_.size()) < count) added_.resize(static_cast<size_t>(count));
    std::memcpy(added_.data(), s.span(10, t), static_cast<size_t>(count) * 4);
    return added_.data();
  }

  QuantizedInput quantised(const FloatInput& input, int64_t tokens) {
    static thread_local Workspace workspace;
    const int64_t stride = round_up(input.columns, kStoredColumns);
    char* const memory = workspace.reserve(tokens * (stride + 8));
    const QuantizedTokens out = {reinterpret_cast<int8_t*>(memory), stride,
                                 reinterpret_cast<float*>(memory + tokens * stride),
                                 reinterpret_cast<int32_t*>(memory + tokens * (stride + 4))};
    quantize_tokens(input, tokens, out, threads_);
    return {out.q, stride, out.scale, out.sum};
  }

  // q span, k span, v span, out span, heads, kv heads, head width, window, [14] cache, [13] window.
  void attend(const PlanStep& s, int64_t first_cache, int64_t count) {
    const floats::FloatKernels& kernels = floats::float_kernels();
    const int64_t heads = s.at(9), kv_heads = s.at(10), width = s.at(11), window = s.at(13);
    const int64_t cache = first_cache + s.at(14);
    for (int64_t t = 0; t < count; ++t) {
      turn(s, t);
      keep(s, t, cache);
      const int64_t at = tokens_.sequence[t] * window * kv_heads * width;
      const int64_t seen = smaller(tokens_.position[t] + 1, window);
      kernels.attend({shape_.scratch, shape_.keys[cache] + at, shape_.values[cache] + at, s.span(7, t),
                      shape_.scratch + (heads + kv_heads) * width, heads, kv_heads, width, seen});
    }
  }

  // Rotary positions (halves convention): queries to scratch, keys behind them.
  void turn(const PlanStep& s, int64_t t) {
    const int64_t heads = s.at(9), kv_heads = s.at(10), width = s.at(11), half = width / 2;
    const float* const cos = shape_.cos + tokens_.position[t] * width;
    const float* const sin = shape_.sin + tokens_.position[t] * width;
    for (int64_t head = 0; head < heads + kv_heads; ++head) {
      const bool is_key = head >= heads;
      const float* const in = is_key ? s.span(3, t) + (head - heads) * width : s.span(1, t) + head * width;
      float* const out = shape_.scratch + head * width;
      for (int64_t i = 0; i < half; ++i) {
        out[i] = in[i] * cos[i] + -in[i + half] * sin[i];
        out[i + half] = in[i + half] * cos[i + half] + in[i] * sin[i + half];
      }
    }
  }

  void keep(const PlanStep& s, int64_t t, int64_t cache) {
    const int64_t row = s.at(10) * s.at(11), window = s.at(13);
    const int64_t at = (tokens_.sequence[t] * window + tokens_.position[t] % window) * row;
    const size_t bytes = static_cast<size_t>(row) * 4;
    std::memcpy(shape_.keys[cache] + at, shape_.scratch + s.at(9) * s.at(11), bytes);
    std::memcpy(shape_.values[cache] + at, s.span(5, t), bytes);
  }

  // raw span, rates span, out span, filter, width, chunk, map, momentum, chunk map, recent; [0] budget, [1] limit.
  void remember(const PlanStep& s, int64_t count) {
    const int64_t n = s.at(8), wide = 3 * n;
    const float* const filter = s.address<const float>(7);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t sequence = tokens_.sequence[t], square = n * n;
      const float* const raw = s.span(1, t);
      const float* const rates = s.span(3, t);
      float* const recent = s.address<float>(13) + sequence * 2 * wide;
      float* const vectors = shape_.scratch;  // key, query, value, error
      for (int64_t i = 0; i < wide; ++i) {
        const float mixed = raw[i] * filter[i] + recent[wide + i] * filter[wide + i] + recent[i] * filter[2 * wide + i];
        vectors[i] = mixed * floats::sigmoid(mixed);
      }
      std::memcpy(recent, recent + wide, static_cast<size_t>(wide) * 4);
      std::memcpy(recent + wide, raw, static_cast<size_t>(wide) * 4);
      for (int64_t part = 0; part < 2; ++part) {
        float squares = 0;
        for (int64_t i = 0; i < n; ++i) squares += vectors[part * n + i] * vectors[part * n + i];
        const float length = std::sqrt(squares);
        const float inverse = 1.0f / (length > 1e-12f ? length : 1e-12f);
        for (int64_t i = 0; i < n; ++i) vectors[part * n + i] *= inverse;
      }
      float* const map = s.address<float>(10) + sequence * square;
      float* const chunk_map = s.address<float>(12) + sequence * square;
      if (tokens_.position[t] % s.at(9) == 0) std::memcpy(chunk_map, map, static_cast<size_t>(square) * 4);
      floats::float_kernels().remember({vectors, vectors + n, vectors + 2 * n, chunk_map, map,
                                        s.address<float>(11) + sequence * square, s.span(5, t), vectors + wide, n,
                                        s.number(0) * floats::sigmoid(rates[0]), floats::sigmoid(rates[1]),
                                        floats::sigmoid(-rates[2]), s.number(1)});
    }
  }
};

}  // namespace agentforge
