#include "client/console.hpp"

#include <chrono>
#include <optional>
#include <string>

#include "client/exit_status.hpp"
#include "client/json_text.hpp"
#include "client/pull/progress.hpp"
#include "client/say.hpp"
#include "client/stdout.hpp"
#include "client/target/target.hpp"

namespace nbdelta::client {

int print_settled(const backup::Settled& settled, const GuestOptions& options) {
  if (options.json) {
    qapi::json::array done;
    qapi::json::array problems;
    for (const std::string& each : settled.done)
      done.push_back(qapi::json::value(each));
    for (const std::string& each : settled.problems)
      problems.push_back(qapi::json::value(each));
    print_stdout(pretty(qapi::json::object{{"result", settled.problems.empty() ? "done" : "open"},
                                           {"overlay-kept", settled.overlay_kept},
                                           {"done", std::move(done)},
                                           {"problems", std::move(problems)}}));
  }
  if (!options.quiet) {
    for (const std::string& each : settled.done)
      say("{}\n", each);
    if (settled.done.empty() && settled.problems.empty())
      say("nothing was left to do\n");
  }
  for (const std::string& each : settled.problems)
    say("nbdelta: {}\n", each);
  return settled.problems.empty() ? kDone : kFailed;
}

std::string_view result_of(const std::exception& error) {
  const bool refused = dynamic_cast<const backup::Refused*>(&error) != nullptr ||
                       dynamic_cast<const target::TargetRefused*>(&error) != nullptr;
  return refused ? "refused" : "failed";
}

void print_failure(bool json, std::string_view result, std::string_view message) {
  if (!json)
    return;
  try {
    print_stdout(pretty(qapi::json::object{{"result", result}, {"error", message}}));
  } catch (const Error&) {  // what is being said is worth more, and is on stderr
  }
}

class ConsoleReporter::Display {
 public:
  explicit Display(bool quiet)
      : style_(quiet ? pull::Progress::Style::none : pull::Progress::style_for_stderr()) {}

  void line(const std::string& text) {
    clear();
    say("nbdelta: {}\n", text);
  }
  void follow(const std::string& disk, const pull::Counters* counters) {
    clear();
    progress_.reset();
    if (counters != nullptr)
      progress_.emplace(style_, *counters, disk);
  }
  void tick() {
    if (progress_)
      progress_->tick(std::chrono::steady_clock::now());
  }
  void clear() {
    if (progress_)
      progress_->clear();
  }

 private:
  pull::Progress::Style style_;
  std::optional<pull::Progress> progress_;
};

ConsoleReporter::ConsoleReporter(bool quiet) : display_(std::make_unique<Display>(quiet)) {
  Display* display = display_.get();
  reporter_.say = [display](const std::string& text) { display->line(text); };
  reporter_.progress = [display](const std::string& disk, const pull::Counters* counters) {
    display->follow(disk, counters);
  };
}

ConsoleReporter::~ConsoleReporter() = default;

void ConsoleReporter::tick() {
  display_->tick();
}

}  // namespace nbdelta::client
