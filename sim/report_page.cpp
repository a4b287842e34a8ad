#include "sim/report_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <regex>
#include <utility>

#include "base/error.hpp"
#include "base/units.hpp"
#include "sim/forecast.hpp"
#include "sim/quantity.hpp"
#include "sim/run_figures.hpp"
#include "sim/run_pictures.hpp"

namespace nbdelta::sim {
namespace {

constexpr std::string_view kStyle = R"(
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0.75rem; max-width: 46rem; background: var(--paper);
       color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin-top: 2rem; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; margin: 0.75rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid var(--grid); }
td.number, th.number { text-align: right; white-space: nowrap; }
@media (max-width: 30rem) { table { font-size: 0.9rem; } th, td { padding-right: 0.5rem; } }
p, li { overflow-wrap: anywhere; }
)";

std::string time(std::int64_t us) {
  return us == 0 ? "0" : format_time(std::chrono::microseconds(us));
}

/// One session of all, with the run that it is of.
struct Shown {
  const Run* run;
  const RunSession* session;
  std::optional<FreezeWindow> window;
  std::string name() const {
    return run->name.empty() ? session->name : run->name + ": " + session->name;
  }
};

bool has_details(const RunSession& session) {
  return !session.overlay.empty();
}

class Page {
 public:
  Page(const std::vector<Run>& runs, std::size_t details) : runs_(&runs), most_details_(details) {
    for (const Run& run : runs)
      for (const RunSession& session : run.sessions)
        sessions_.push_back({&run, &session, window_of(session)});
    if (sessions_.empty())
      fail(EINVAL, "there is no session in what was given: nothing to report");
  }

  std::vector<ReportFile> make() {
    head();
    windows();
    faults();
    details();
    return files();
  }

 private:
  template <class... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    html_ += fmt::format(format, std::forward<Args>(args)...);
  }

  /// Where it is to be drawn later.
  void add(Picture picture) {
    html_ += "\n<!--" + picture.name + "-->\n";
    pictures_.push_back(std::move(picture));
  }

  void head() {
    std::size_t done = 0;
    std::size_t failed = 0;
    for (const Shown& each : sessions_) {
      done += each.session->result == kResultDone ? 1U : 0U;
      failed += each.session->result && *each.session->result != kResultDone ? 1U : 0U;
    }
    std::size_t real = 0;
    for (const Run& run : *runs_)
      real += run.time == kReal ? 1U : 0U;
    add("<h1>{}</h1>\n", xml_text(title()));
    add("<p>{} in {}", counted(sessions_.size(), "session"), counted(runs_->size(), "file"));
    if (failed != 0)
      add("; {} came to their end, {} did not", done, failed);
    add(". Time is {}.</p>\n", real == 0 ? "virtual: exact, and nothing of nbdelta's own "
                                           "computing is in it"
                               : real == runs_->size() ? "real"
                                                       : "virtual in some, real in others");
  }

  std::string title() const {
    for (const Run& run : *runs_)
      if (run.name != runs_->front().name)
        return "nbdelta: " + counted(runs_->size(), "run");
    return "nbdelta: " + runs_->front().name;
  }

  static std::string counted(std::size_t count, const std::string& what) {
    return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
  }

  // ---- Windows and the budget ----

  void windows() {
    std::vector<const Shown*> sorted;
    for (const Shown& each : sessions_)
      if (each.window)
        sorted.push_back(&each);
    add("<h2>Freeze windows</h2>\n");
    if (sorted.empty()) {
      add("<p>No session came to its switch.</p>\n");
      return;
    }
    std::stable_sort(sorted.begin(), sorted.end(), [](const Shown* a, const Shown* b) {
      return a->window->length_us() < b->window->length_us();
    });
    add("<p>From the freeze's arrival at the guest agent to the thaw's answer; without a freeze, "
        "the "
        "switch alone.</p>\n");
    std::vector<double> values;
    for (const Shown* each : sorted)
      values.push_back(static_cast<double>(each->window->length_us()) / 1e3);
    window_table(sorted);
    if (sorted.size() > 1)
      add(draw_windows("windows", values));
    budget(sorted);
  }

  void window_table(const std::vector<const Shown*>& sorted) {
    add("<div class=\"wide\"><table>\n<tr><th></th><th class=\"number\">median</th>"
        "<th class=\"number\">95 %</th><th class=\"number\">99 %</th>"
        "<th class=\"number\">largest</th></tr>\n");
    const auto row = [&](const char* name, auto part) {
      std::vector<double> values;
      for (const Shown* each : sorted)
        values.push_back(static_cast<double>(part(*each->window)));
      const Spread spread = spread_of(std::move(values));
      add("<tr><th>{}</th>", name);
      for (const double value :
           {spread.median, spread.percentile_95, spread.percentile_99, spread.largest})
        add("<td class=\"number\">{}</td>", time(static_cast<std::int64_t>(value)));
      add("</tr>\n");
    };
    row("window", [](const FreezeWindow& w) { return w.length_us(); });
    row("freeze (agent)", [](const FreezeWindow& w) { return w.freeze_us; });
    row("switch (QEMU)", [](const FreezeWindow& w) { return w.switch_us; });
    row("thaw (agent)", [](const FreezeWindow& w) { return w.thaw_us; });
    row("nbdelta", [](const FreezeWindow& w) { return w.own_us(); });
    add("</table></div>\n");
  }

  void budget(const std::vector<const Shown*>& sorted) {
    add("<h2>The budget</h2>\n<p>Whose the time is{}.</p>\n",
        sorted.size() == 1 ? "" : ", in the sessions whose windows are at these ranks");
    std::vector<LabelledWindow> bars;
    const auto rank = [&](const char* name, double share) {
      const auto index = static_cast<std::size_t>(
          std::max(1.0, std::ceil(share * static_cast<double>(sorted.size()))));
      bars.push_back({name, *sorted[index - 1]->window});
    };
    if (sorted.size() == 1) {
      bars.push_back({"window", *sorted.front()->window});
    } else {
      rank("median", 0.5);
      if (sorted.size() >= 20)
        rank("95 %", 0.95);
      if (sorted.size() >= 100)
        rank("99 %", 0.99);
      rank("largest", 1);
    }
    add(draw_budget("budget", bars));
  }

  // ---- Faults ----

  void faults() {
    const std::vector<FaultEffect> effects = effects_of(*runs_);
    if (effects.empty())
      return;
    add("<h2>What each fault did</h2>\n<p>A session counts for every fault that fell upon it. It "
        "was "
        "done all the same, or not; the guest was frozen, and its longest request took, "
        "so long at the most. In the picture a circle is the larger the more sessions it "
        "is.</p>\n<div class=\"wide\"><table>\n<tr><th>fault</th><th class=\"number\">done</th>"
        "<th class=\"number\">frozen</th><th class=\"number\">request</th></tr>\n");
    for (const FaultEffect& each : effects)
      add("<tr><th>{}</th><td class=\"number\">{} of {}</td><td class=\"number\">{}</td>"
          "<td class=\"number\">{}</td></tr>\n",
          xml_text(each.name), each.done, each.sessions, time(each.longest_frozen_us),
          time(each.longest_request_us));
    add("</table></div>\n");
    add(draw_faults("faults", effects));
  }

  // ---- Sessions ----

  /// The first ones with details; where there are none, the first ones.
  void details() {
    std::vector<const Shown*> chosen;
    for (const Shown& each : sessions_)
      if (has_details(*each.session) && chosen.size() < most_details_)
        chosen.push_back(&each);
    if (chosen.empty())
      for (const Shown& each : sessions_)
        if (chosen.size() < most_details_)
          chosen.push_back(&each);
    if (chosen.empty())
      return;
    add("<h2>Sessions</h2>\n<p>The freeze window is shaded. A stroke is a command, a cross one "
        "that "
        "was refused or not answered.</p>\n");
    for (std::size_t i = 0; i < chosen.size(); ++i)
      session(*chosen[i], fmt::format("session-{}", i + 1));
    if (chosen.size() < sessions_.size())
      add("<p>{} more are in the tables above alone.</p>\n",
          counted(sessions_.size() - chosen.size(), "session"));
  }

  void session(const Shown& shown, const std::string& name) {
    const RunSession& session = *shown.session;
    add("<h3>{}</h3>\n<p>", xml_text(shown.name()));
    if (session.result && *session.result == kResultDone)
      add("Done. ");
    else if (session.result)
      add("Not done: {}. ", xml_text(*session.result));
    if (shown.window)
      add("Freeze window {}. ", time(shown.window->length_us()));
    if (frozen_us(session) > (shown.window ? shown.window->length_us() : 0))
      add("The guest was frozen for {}. ", time(frozen_us(session)));
    if (!session.latency.empty())
      add("Its longest request took {}. ", time(longest_request_us(session)));
    std::uint64_t most = 0;
    for (const RunAmount& each : session.overlay)
      most = std::max(most, each.bytes);
    if (!session.overlay.empty())
      add("The overlays grew to {}. ", format_size(most));
    if (!session.pulled.empty())
      add("{} were pulled.", format_size(session.pulled.back().bytes));
    add("</p>\n");
    fault_list(session);
    if (session.end_us > session.start_us && has_details(session))
      add(draw_timeline(name, session));
    if (shown.window)
      add(draw_window(name + "-window", *shown.window));
  }

  void fault_list(const RunSession& session) {
    if (session.faults.empty())
      return;
    const std::vector<SessionState> states = states_of(session);
    add("<ol>\n");
    for (const RunFault& fault : session.faults)
      add("<li>{} after {}, in {}</li>\n", xml_text(fault.name),
          time(fault.at_us - session.start_us), state_at(states, fault.at_us));
    add("</ol>\n");
  }

  // ---- Files ----

  std::vector<ReportFile> files() {
    const std::vector<std::string> drawn = draw(pictures_);
    std::vector<ReportFile> files(1);
    for (std::size_t i = 0; i < drawn.size(); ++i) {
      const std::string place = "<!--" + pictures_[i].name + "-->";
      html_.replace(html_.find(place), place.size(), drawn[i]);
      files.push_back({pictures_[i].name + ".svg", svg_file(drawn[i])});
    }
    files.front() = {
        "report.html",
        fmt::format(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
            "<meta name=\"color-scheme\" content=\"light dark\"/>\n"
            "<title>{}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
            xml_text(title()), colour_rules(":root"), kStyle, html_)};
    return files;
  }

  const std::vector<Run>* runs_;
  std::size_t most_details_;
  std::vector<Shown> sessions_;
  std::string html_;
  std::vector<Picture> pictures_;
};

}  // namespace

bool is_picture_of_report(const std::string& file) {
  static const std::regex kNames(R"((windows|budget|faults|session-[0-9]+(-window)?)\.svg)");
  return std::regex_match(file, kNames);
}

std::vector<ReportFile> make_report(const std::vector<Run>& runs, std::size_t details) {
  return Page(runs, details).make();
}

}  // namespace nbdelta::sim
