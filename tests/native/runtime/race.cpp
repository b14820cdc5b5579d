// A race on purpose, in threads that ask one engine: ThreadSanitizer has to see it.
//
//     race ARTIFACT    of `write_counting_engine` (tests/helpers/made_up_engines.py)
#include <atomic>
#include <madtp/engine.hpp>
#include <thread>

int main(int count, char** given) {
    if (count != 2) { return 2; }
    madtp::Engine const engine = madtp::Engine::load(given[1]);
    float const row[] = {1, 2, 1};
    std::atomic<int> asked{0};
    int answers = 0;
    auto const ask = [&] {
        madtp::Session session(engine);
        session.infer("model", {{"x", {row, {1, 3}}}});
        // Locks within the engine would put the threads in an order by chance; relaxed counting puts them in none.
        asked.fetch_add(1, std::memory_order_relaxed);
        while (asked.load(std::memory_order_relaxed) < 2) { std::this_thread::yield(); }
        ++answers;  // the race
    };
    std::thread first(ask), second(ask);
    first.join();
    second.join();
    return answers > 0 ? 0 : 1;
}
