// Choosing the next token from logits, in double: repetition penalty, forbidden tokens, temperature, top-k, top-p and
// a given random number, in this order (agentforge.runtime.generate.choose is the same in NumPy).
#pragma once

#include <algorithm>
#include <vector>

#include "common.hpp"

namespace agentforge {

struct SamplerOptions {
  double temperature;  // 0: the most likely token
  double top_p;        // only the most likely tokens that reach it together; 1: all
  double penalty;      // of tokens seen before; 1: none
  int64_t top_k;       // 0: all
  const int32_t* forbidden;
  int64_t forbidden_count;
  const int32_t* stop;
  int64_t stop_count;

  bool stops(int64_t token) const { return std::find(stop, stop + stop_count, token) != stop + stop_count; }
};

class Sampler {
 public:
  // `seen`: tokens that count as repeated, each any number of times. `uniform` in [0, 1).
  int64_t choose(const float* logits, int64_t count, const SamplerOptions& options, const int32_t* seen,
                 int64_t seen_count, double uniform) {
    scores_.assign(logits, logits + count);
    if (options.penalty != 1.0) penalise(options.penalty, seen, seen_count);
    for (int64_t i = 0; i < options.forbidden_count; ++i) scores_[index(options.forbidden[i])] = -INFINITY;
    const auto largest = std::max_element(scores_.begin(), scores_.end());
    if (options.temperature == 0.0) return largest - scores_.begin();
    for (double& score : scores_) score /= options.temperature;
    if (options.top_k && options.top_k < count) keep_largest(options.top_k);
    const double most = *std::max_element(scores_.begin(), scores_.end());
    double total = 0.0;
    for (double& score : scores_) {
      score = std::exp(score - most);
      total += score;
    }
    for (double& p : scores_) p /= total;
    if (options.top_p < 1.0) keep_nucleus(options.top_p);
    return draw(uniform);
  }

 private:
  std::vector<double> scores_, sorted_;
  std::vector<uint8_t> repeated_;
  std::vector<int64_t> order_;

  static size_t index(int64_t i) { return static_cast<size_t>(i); }

  void penalise(double penalty, const int32_t* seen, int64_t seen_count) {
    repeated_.assign(scores_.size(), 0);
    for (int64_t i = 0; i < seen_count; ++i) {
      uint8_t& already = repeated_[index(seen[i])];
      double& score = scores_[index(seen[i])];
      if (!already) score = score > 0 ? score / penalty : score * penalty;
      already = 1;
    }
  }

  // Ties with the k-th stay, as a threshold has it.
  void keep_largest(int64_t k) {
    sorted_ = scores_;
    const auto kth = sorted_.begin() + k - 1;
    std::nth_element(sorted_.begin(), kth, sorted_.end(), std::greater<double>());
    const double least = *kth;
    for (double& score : scores_)
      if (score < least) score = -INFINITY;
  }

  // Sorts only what can belong to the nucleus: all tokens under (1 - top_p) / count together stay under 1 - top_p, so
  // the others reach top_p without them. Of 50,000 tokens that leaves some hundreds.
  void keep_nucleus(double top_p) {
    const double least = (1.0 - top_p) / static_cast<double>(scores_.size());
    order_.clear();
    for (size_t i = 0; i < scores_.size(); ++i) {
      if (scores_[i] >= least)
        order_.push_back(static_cast<int64_t>(i));
      else
        scores_[i] = 0.0;
    }
    std::stable_sort(order_.begin(), order_.end(),
                     [this](int64_t a, int64_t b) { return scores_[index(a)] > scores_[index(b)]; });
    double before = 0.0;
    for (const int64_t token : order_) {
      const double p = scores_[index(token)];
      if (before >= top_p) scores_[index(token)] = 0.0;
      before += p;
    }
  }

  int64_t draw(double uniform) const {
    double total = 0.0;
    for (const double p : scores_) total += p;
    const double wanted = uniform * total;
    double sum = 0.0;
    int64_t last = 0;
    for (size_t i = 0; i < scores_.size(); ++i) {
      sum += scores_[i];
      if (sum > wanted) return static_cast<int64_t>(i);
      if (scores_[i] > 0.0) last = static_cast<int64_t>(i);
    }
    return last;
  }
};

}  // namespace agentforge
