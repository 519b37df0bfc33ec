// Driver of a whole model: the steps of a DecodePlan (agentforge.runtime.plan) in one call a token, over buffers,
// caches and weights that Python owns. A plan arrives as records of kRecord 64-bit numbers, addresses included;
// Python has checked shapes (runtime/native.py).
#pragma once

#include <chrono>
#include <vector>

#include "activation_sparse.hpp"
#include "block_sparse.hpp"
#include "plan_floats.hpp"
#include "quantize.hpp"
#include "sampler.hpp"

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
  kLinearBfloat16 = 10,
  kEmbedBfloat16 = 11,
};

constexpr int64_t kRecord = 32;  // [0] kind, [1..27] whole numbers and addresses, [28..31] doubles as bits
constexpr int64_t kDoubles = 28;
// Multiply-adds a thread must have in attention and in small float matrices: about 4 us of work.
constexpr int64_t kLeastFloatWork = 1 << 17;
// Tokens that attend together: 8 queries of 256 slots are 8 KB of scores in the first-level cache.
constexpr int64_t kMostQueries = 8;

struct PlanStep {
  int64_t field[kRecord];
  int64_t record;  // its place in the order of the records

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
  float* scratch;      // [scratch_floats] for memory vectors
  const float* cos;    // [context][head width]
  const float* sin;
  char* const* keys;    // [caches]: [sequences][kv heads] of HeadCache::keys
  char* const* values;
  float* const* key_scales;
  float* const* value_scales;
  int64_t recursion_steps;  // 0: no recursion
  int64_t latent_steps;
  int64_t first_cache;
  const float* inject_prelude;
  const float* inject_answer;
  float threshold;
  int64_t cache_type;
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
        step.record = record_count_++;
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

  // Reads `token`, chooses the next, and so on, for `count` tokens at most. Tokens read are appended to `seen`, which
  // holds `seen_count` and has room; those chosen go to `chosen`. Returns how many were: fewer where one stops (it is
  // not among them). After NaN or infinity: -1 - how many were good.
  int64_t generate(const SamplerOptions& options, int32_t token, int32_t sequence, int32_t position, int64_t count,
                   const double* uniforms, const float* logits, int64_t vocab_size, int32_t* seen, int64_t seen_count,
                   int32_t* chosen, int32_t* steps_taken, int threads) {
    for (int64_t done = 0; done < count; ++done, ++position) {
      seen[seen_count++] = token;
      if (read({1, &token, &sequence, &position}, steps_taken, threads) != kAllFinite) return -1 - done;
      if (head(1, threads) != kAllFinite) return -1 - done;
      const int64_t next = sampler_.choose(logits, vocab_size, options, seen, seen_count, uniforms[done]);
      if (options.stops(next)) return done;
      chosen[done] = token = static_cast<int32_t>(next);
    }
    return count;
  }

  // From now on the nanoseconds of every record are added up in `spent` [records]; null: no more.
  void time_steps(int64_t* spent) { spent_ = spent; }

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
  Sampler sampler_;
  int64_t record_count_ = 0;
  int64_t* spent_ = nullptr;
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
        for (int64_t token = 0; token < tokens_.count; ++token)
          for (int64_t head = 0; head < s.at(10); ++head) {
            const float* const key = turned_key(s, token, head, shape_.scratch);
            for (int64_t pass = step * shape_.latent_steps; pass < passes; ++pass)
              keep(s, token, head, shape_.first_cache + pass * blocks, key);
          }
        break;
      }
    }
  }

  void run(const std::vector<PlanStep>& steps, int64_t first_cache, int64_t count) {
    for (const PlanStep& step : steps) execute(step, first_cache, count);
  }

  void execute(const PlanStep& s, int64_t first_cache, int64_t count) {
    if (!spent_) {
      perform(s, first_cache, count);
      return;
    }
    const auto began = std::chrono::steady_clock::now();
    perform(s, first_cache, count);
    const auto ended = std::chrono::steady_clock::now();
    spent_[s.record] += std::chrono::duration_cast<std::chrono::nanoseconds>(ended - began).count();
  }

  void perform(const PlanStep& s, int64_t first_cache, int64_t count) {
    const floats::FloatKernels& kernels = floats::float_kernels();
    switch (s.at(0)) {
      case kEmbedFloat:  // table, width, out span
        for (int64_t t = 0; t < count; ++t)
          std::memcpy(s.span(3, t), s.address<const float>(1) + tokens_.ids[t] * s.at(2),
                      static_cast<size_t>(s.at(2)) * 4);
        return;
      case kEmbedBfloat16:
        for (int64_t t = 0; t < count; ++t) {
          const uint16_t* const row = s.address<const uint16_t>(1) + tokens_.ids[t] * s.at(2);
          for (int64_t i = 0; i < s.at(2); ++i)
            s.span(3, t)[i] = float_from_bits(static_cast<uint32_t>(row[i]) << 16);
        }
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
      case kLinearFloat:
      case kLinearBfloat16: dense_floats(s, count); return;
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

  // src span, columns, rows, blocks, out span, residual span (0: none), bias, sigmoid
  void dense_floats(const PlanStep& s, int64_t count) {
    const floats::FloatKernels& kernels = floats::float_kernels();
    const int64_t panels = ceil_div(s.at(4), kPanelRows);
    const int threads = useful_threads(threads_, count * s.at(3) * s.at(4), kLeastFloatWork, panels);
    fork_join(threads, [&](int64_t part, int64_t parts) {
      for (int64_t t = 0; t < count; ++t)
        kernels.dense({s.address<const void>(5), s.address<const float>(10), s.at(8) ? s.span(8, t) : nullptr, s.at(4),
                       s.at(3), s.at(11) != 0, s.at(0) == kLinearBfloat16},
                      s.span(1, t), s.span(6, t), part_begin(panels, part, parts), part_begin(panels, part + 1, parts));
    });
  }

  // q span, k span, v span, out span, [9] heads, kv heads, head width, [13] window, cache. Threads take heads of
  // keys, each for all tokens: what a token attends to is then written by the same thread.
  void attend(const PlanStep& s, int64_t first_cache, int64_t count) {
    const floats::FloatKernels& kernels = floats::float_kernels();
    const int64_t heads = s.at(9), kv_heads = s.at(10), width = s.at(11), window = s.at(13);
    const int64_t shared = heads / kv_heads;
    int64_t most = 0, work = 0;
    for (int64_t t = 0; t < count; ++t) {
      const int64_t seen = smaller(tokens_.position[t] + 1, window);
      most = larger(most, seen);
      work += 2 * seen * heads * width;
    }
    const int threads = useful_threads(threads_, work, kLeastFloatWork, kv_heads);
    const int64_t together = smaller(count, kMostQueries), queries = together * shared;
    const int64_t row = round_up(width, 16), seen_row = round_up(most, 16);
    const int64_t slice = round_up(4 * (width + queries * (width + row + 1 + seen_row)), 64);
    char* const memory = Workspace::of_this_thread().reserve(threads * slice);
    fork_join(threads, [&](int64_t part, int64_t parts) {
      float* const key = reinterpret_cast<float*>(memory + part * slice);
      float* const q = key + width;
      float* const sums = q + queries * width;
      float* const inverse = sums + queries * row;
      const int64_t end = part_begin(kv_heads, part + 1, parts);
      for (int64_t head = part_begin(kv_heads, part, parts); head < end; ++head) {
        for (int64_t t = 0, next = 0; t < count; t = next) {
          for (next = t; next < count && next - t < together && follows(t, next, window); ++next) {
            const int64_t at = tokens_.position[next] * width;
            keep(s, next, head, first_cache, turned_key(s, next, head, key));
            for (int64_t i = 0; i < shared; ++i)
              kernels.rotate(s.span(1, next) + (head * shared + i) * width, shape_.cos + at, shape_.sin + at, width,
                             q + ((next - t) * shared + i) * width);
          }
          kernels.attend({cache_of(s, t, head, first_cache), shape_.cache_type, q,
                          s.span(7, t) + head * shared * width, s.at(8), inverse + queries, sums, inverse, next - t,
                          shared, width, smaller(tokens_.position[t] + 1, window)});
        }
      }
    });
  }

  // Whether token `next` can be read together with `t` before it: it comes after it in the same sequence, and takes
  // no place in the cache that a token before it still looks at.
  bool follows(int64_t t, int64_t next, int64_t window) const {
    return next == t || (tokens_.sequence[next] == tokens_.sequence[t] && tokens_.position[next] < window &&
                         tokens_.position[next] == tokens_.position[t] + (next - t));
  }

  const float* turned_key(const PlanStep& s, int64_t t, int64_t head, float* out) const {
    const int64_t width = s.at(11), at = tokens_.position[t] * width;
    floats::float_kernels().rotate(s.span(3, t) + head * width, shape_.cos + at, shape_.sin + at, width, out);
    return out;
  }

  floats::HeadCache cache_of(const PlanStep& s, int64_t t, int64_t head, int64_t first_cache) const {
    const int64_t width = s.at(11), slots = round_up(s.at(13), 16), cache = first_cache + s.at(14);
    const int64_t number = tokens_.sequence[t] * s.at(10) + head, bytes = floats::cache_bytes(shape_.cache_type);
    const bool scaled = shape_.cache_type == floats::kCacheInt8;
    return {shape_.keys[cache] + number * slots * width * bytes,
            shape_.values[cache] + number * s.at(13) * round_up(width, 16) * bytes,
            scaled ? shape_.key_scales[cache] + number * slots : nullptr,
            scaled ? shape_.value_scales[cache] + number * slots : nullptr};
  }

  void keep(const PlanStep& s, int64_t t, int64_t head, int64_t first_cache, const float* key) {
    floats::float_kernels().store(cache_of(s, t, head, first_cache), shape_.cache_type,
                                  tokens_.position[t] % s.at(13), key, s.span(5, t) + head * s.at(11), s.at(11));
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
