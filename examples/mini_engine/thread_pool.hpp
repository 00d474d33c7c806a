// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace mini_engine {

/// Runs loops on a fixed number of threads, the caller among them. One loop at a time.
class thread_pool {
public:
    explicit thread_pool(std::size_t threads) {
        for (std::size_t worker = 1; worker < threads; ++worker) threads_.emplace_back([this, worker] { serve(worker); });
    }
    thread_pool(const thread_pool&) = delete;
    thread_pool& operator=(const thread_pool&) = delete;
    ~thread_pool() {
        task_ = nullptr;
        publish();
        for (auto& t : threads_) t.join();
    }

    std::size_t size() const noexcept { return threads_.size() + 1; }

    /// Calls body(i, worker) for every i < count, in any order; worker < size() tells whose scratch memory may be used.
    template <class Body>
    void for_each(std::size_t count, const Body& body) {
        if (count == 0) return;
        if (count == 1 || threads_.empty()) {
            for (std::size_t i = 0; i < count; ++i) body(i, 0);
            return;
        }
        context_ = &body;
        task_ = [](const void* context, std::size_t i, std::size_t worker) { (*static_cast<const Body*>(context))(i, worker); };
        count_ = count;
        next_.store(0, std::memory_order_relaxed);
        busy_.store(threads_.size(), std::memory_order_relaxed);
        publish();
        drain(0);
        // Idle workers wait a few microseconds for each other between two loops of a layer; sleeping would cost more.
        while (busy_.load(std::memory_order_acquire) != 0) pause();
    }

private:
    static constexpr int spins_before_sleep = 4000;

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#else
        std::this_thread::yield();
#endif
    }

    void publish() {
        round_.fetch_add(1, std::memory_order_release);
        round_.notify_all();
    }

    void drain(std::size_t worker) {
        for (std::size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) task_(context_, i, worker);
    }

    void serve(std::size_t worker) {
        for (std::uint32_t seen = 0;;) {
            for (int spin = 0; spin < spins_before_sleep && round_.load(std::memory_order_acquire) == seen; ++spin) pause();
            round_.wait(seen, std::memory_order_acquire);
            ++seen;
            if (task_ == nullptr) return;
            drain(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::vector<std::thread> threads_;
    const void* context_ = nullptr;
    void (*task_)(const void*, std::size_t, std::size_t) = nullptr;
    std::size_t count_ = 0;
    alignas(64) std::atomic<std::size_t> next_{0};
    alignas(64) std::atomic<std::size_t> busy_{0};
    alignas(64) std::atomic<std::uint32_t> round_{0};
};

}  // namespace mini_engine
