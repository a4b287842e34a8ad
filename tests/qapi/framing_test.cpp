#include "qapi/framing.hpp"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.hpp"

namespace nbdelta::qapi {
namespace {

std::vector<std::string> all_lines(Framer& framer) {
  std::vector<std::string> lines;
  while (auto line = framer.next())
    lines.push_back(*line);
  return lines;
}

TEST(Framer, ReturnsTheSameLinesHoweverTheStreamIsCut) {
  const std::string stream = "{\"a\":1}\r\n\r\n{\"b\":2}\n  \n{\"c\":3}\r\n";
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    Framer framer;
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      framer.feed(std::string_view(stream).substr(at, piece));
      for (std::string& line : all_lines(framer))
        lines.push_back(std::move(line));
    }
    EXPECT_EQ(lines, (std::vector<std::string>{"{\"a\":1}", "{\"b\":2}", "{\"c\":3}"})) << piece;
  }
}

TEST(Framer, KeepsAnUnfinishedLine) {
  Framer framer;
  framer.feed("{\"a\"");
  EXPECT_EQ(framer.next(), std::nullopt);
  framer.feed(":1}\n");
  EXPECT_EQ(framer.next(), "{\"a\":1}");
}

TEST(Framer, TakesTheLongestLineAndNoLonger) {
  Framer framer(10);
  framer.feed("0123456789\n");
  EXPECT_EQ(framer.next(), "0123456789");
  framer.feed("01234567890\n");
  EXPECT_THROW(framer.next(), Error);
}

TEST(Framer, RefusesALongLineBeforeItsEndHasCome) {
  Framer framer(10);
  framer.feed("01234567890");
  EXPECT_THROW(framer.next(), Error);
}

TEST(Framer, SkipsStaleBytesUpToTheDelimiterHoweverTheyAreCut) {
  const std::string stream = "{\"return\":1}\n{\"ret\xff{\"return\":2}\n";
  for (std::size_t piece = 1; piece <= stream.size(); ++piece) {
    Framer framer;
    framer.skip_to_delimiter();
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < stream.size(); at += piece) {
      framer.feed(std::string_view(stream).substr(at, piece));
      for (std::string& line : all_lines(framer))
        lines.push_back(std::move(line));
    }
    EXPECT_EQ(lines, std::vector<std::string>{"{\"return\":2}"}) << piece;
  }
}

TEST(Framer, SkipsWhatWasBufferedBeforeItWasTold) {
  Framer framer;
  framer.feed("{\"return\":1}\n\xff{\"return\":2}\n");
  framer.skip_to_delimiter();
  EXPECT_EQ(framer.next(), "{\"return\":2}");
  EXPECT_FALSE(framer.skipping());
}

}  // namespace
}  // namespace nbdelta::qapi
