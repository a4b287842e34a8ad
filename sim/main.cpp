#include <CLI/CLI.hpp>
#include <exception>
#include <functional>
#include <map>
#include <string>

#include "client/say.hpp"
#include "sim/explore_command.hpp"
#include "sim/forecast_command.hpp"
#include "sim/gate_command.hpp"
#include "sim/report_command.hpp"
#include "sim/run_command.hpp"

using namespace nbdelta::sim;

int main(int argc, char** argv) {
  CLI::App app("Stands in for QEMU, its guest agent and its guest");
  app.require_subcommand(1);
  const std::map<std::string, std::function<int()>> commands{
      {"explore", add_explore_command(app)},   {"run", add_run_command(app)},
      {"forecast", add_forecast_command(app)}, {"gate", add_gate_command(app)},
      {"report", add_report_command(app)},     {"check", add_check_command(app)}};
  CLI11_PARSE(app, argc, argv);
  try {
    return commands.at(app.get_subcommands().front()->get_name())();
  } catch (const std::exception& error) {
    nbdelta::client::say("nbdelta-sim: {}\n", error.what());
    return 1;
  }
}
