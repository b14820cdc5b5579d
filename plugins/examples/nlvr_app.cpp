// Whether a sentence is true of two images.
//
//     nlvr_app ARTIFACT LEFT.jpg RIGHT.jpg "both images show a dog" [--temperature T] [--rotate] [--vocab FILE]
//              [--device cuda] [--onnxruntime LIBRARY]
#include "options.h"

int main(int count, char** given) {
    return run(count, given, [](Options const& options) {
        if (options.names.size() != 4) {
            throw madtp::Error(madtp::Code::input, "usage: nlvr_app ARTIFACT LEFT RIGHT SENTENCE");
        }
        madtp::Engine const engine = madtp::Engine::load(options.names[0], options.engine);
        madtp::TaskSession session(engine, options.vocabulary);
        madtp::Image const left = open_image(options.names[1], options);
        madtp::Image const right = open_image(options.names[2], options);
        madtp::AskOptions asked;
        asked.temperature = options.temperature;
        madtp::Judgement const judgement = session.judge({{left, right, options.names[3]}}, asked).front();
        std::printf("%s (probability of true %.3f)\n    tokens %s\n    runs %s\n", judgement.answer ? "true" : "false",
            judgement.probability, shown(judgement.tokens).c_str(), engine.execution().c_str());
    });
}
