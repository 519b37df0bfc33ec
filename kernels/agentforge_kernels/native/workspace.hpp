// Scratch memory that lives as long as its thread and only grows: a call of 1 us cannot pay for malloc.
#pragma once

#include <cstdlib>
#include <new>

#include "common.hpp"

namespace agentforge {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(memory_); }

  // At least `bytes`, 64-byte aligned, contents undefined. Valid until the next call on this thread.
  // Throws std::bad_alloc (MemoryError in Python).
  char* reserve(int64_t bytes) {
#ifdef __SANITIZE_ADDRESS__
    // A block of exactly this size every time, so that a step over its end is seen.
    std::free(memory_);
    memory_ = static_cast<char*>(std::aligned_alloc(64, static_cast<size_t>(round_up(bytes, 64))));
    if (!memory_) throw std::bad_alloc();
    return memory_;
#endif
    if (bytes > size_) {
      std::free(memory_);
      size_ = 0;
      const int64_t wanted = round_up(bytes + bytes / 4, 4096);
      memory_ = static_cast<char*>(std::aligned_alloc(4096, static_cast<size_t>(wanted)));
      if (!memory_) throw std::bad_alloc();
      size_ = wanted;
    }
    return memory_;
  }

  static Workspace& of_this_thread() {
    static thread_local Workspace workspace;
    return workspace;
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace agentforge
