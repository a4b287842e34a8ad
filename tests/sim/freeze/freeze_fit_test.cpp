#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>

#include "client/json_text.hpp"
#include "tests/sim/freeze/measured_windows.hpp"

namespace nbdelta::testing {
namespace {

TEST(FreezeFit, Measures) {
  Measurements m;
  for (const WriterLoad& load : {WriterLoad{40, 1}, WriterLoad{160, 1}, WriterLoad{640, 1},
                                 WriterLoad{40, 3}, WriterLoad{160, 3}, WriterLoad{320, 2}}) {
    m.loads.push_back(measure(load, 12));
    std::ofstream(std::getenv("NBDELTA_FREEZE_MEASURED")) << client::to_json_text(m);
  }
}

}  // namespace
}  // namespace nbdelta::testing
