// A sentence about an image, by beam search.
//
//     caption_app ARTIFACT IMAGE [--beams 3] [--prompt "a picture of "] [--temperature T] [--rotate] [--vocab FILE]
//                 [--device cuda] [--onnxruntime LIBRARY]
#include "options.h"

int main(int count, char** given) {
    return run(count, given, [](Options const& options) {
        if (options.names.size() != 2) { throw madtp::Error(madtp::Code::input, "usage: caption_app ARTIFACT IMAGE"); }
        madtp::Engine const engine = madtp::Engine::load(options.names[0], options.engine);
        madtp::TaskSession session(engine, options.vocabulary);
        madtp::Image const image = open_image(options.names[1], options);
        madtp::CaptionOptions asked;
        asked.temperature = options.temperature;
        asked.beams = options.beams;
        if (options.prompt) { asked.prompt = *options.prompt; }
        madtp::Caption const caption = session.caption({image}, asked).front();
        std::printf("%s\n    tokens %s\n    runs %s\n", caption.text.c_str(), shown(caption.tokens).c_str(),
            engine.execution().c_str());
    });
}
