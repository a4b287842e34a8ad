#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "sim/plot_parts.hpp"
#include "sim/run_pictures.hpp"

namespace nbdelta::sim {
namespace {

constexpr unsigned kPanel = 112;  // pixels of a panel's graph
constexpr unsigned kGap = 34;     // above each, for its title
constexpr unsigned kBottom = 58;

/// Panels below each other, with the same time.
class Timeline {
 public:
  explicit Timeline(const RunSession& session) : session_(&session), states_(states_of(session)) {
    const std::int64_t span = std::max<std::int64_t>(session.end_us - session.start_us, 1);
    unit_us_ = span < 2'000'000 ? 1e3 : 1e6;
    span_ = static_cast<double>(span) / unit_us_;
  }

  Picture picture(const std::string& name) {
    states();
    if (!session_->latency.empty())
      latency();
    if (std::any_of(session_->overlay.begin(), session_->overlay.end(),
                    [](const RunAmount& each) { return each.bytes != 0; }))
      overlay();
    if (!session_->pulled.empty())
      pull();
    Picture picture{.name = name,
                    .title = "States, commands, requests, overlay and pull of a session over time",
                    .width = kWidth,
                    .height = kBottom,
                    .script = ink() + marks()};
    for (const Panel& panel : panels_)
      picture.height += kGap + panel.height;
    picture.script += fmt::format(
        "set multiplot\nset lmargin at screen 0.19\nset rmargin at screen 0.965\n"
        "set xrange [0:{:.6g}]\nset xtics {}\nset format x ''\n",
        span_, few_tics(span_));
    unsigned top = 0;
    for (const Panel& panel : panels_) {
      top += kGap;
      if (&panel == &panels_.back())
        picture.script +=
            fmt::format("set format x '%g'\nset xlabel '{} since the session began'\n",
                        unit_us_ == 1e3 ? "ms" : "s");
      const auto screen = [&](unsigned y) {
        return 1 - static_cast<double>(y) / static_cast<double>(picture.height);
      };
      picture.script +=
          fmt::format("unset label\nset tmargin at screen {:.5f}\nset bmargin at screen {:.5f}\n{}",
                      screen(top), screen(top + panel.height), panel.script);
      top += panel.height;
    }
    picture.script += "unset multiplot\n";
    return picture;
  }

 private:
  struct Panel {
    unsigned height;
    std::string script;
  };

  double at(std::int64_t us) const {
    return std::clamp(static_cast<double>(us - session_->start_us) / unit_us_, 0.0, span_);
  }

  static std::string title(unsigned height, const std::string& text) {
    return label(0, 1 + 12.0 / static_cast<double>(height), text, "left");
  }

  /// The window, and the faults, in all panels.
  std::string marks() const {
    std::string script;
    if (const auto window = window_of(*session_)) {
      const double start = at(window->start_us);
      const double end = std::max(at(window->end_us), start + span_ * 0.004);  // to be seen
      script += fmt::format(
          "set object rect from {:.6g}, graph 0 to {:.6g}, graph 1 fc rgb '{}' "
          "fs solid 1 noborder behind\n",
          start, end, colour::kGrid);
    }
    for (const RunFault& fault : session_->faults)
      script += fmt::format(
          "set arrow from {0:.6g}, graph 0 to {0:.6g}, graph 1 nohead lw 1.5 dt 2 lc rgb '{1}' "
          "front\n",
          at(fault.at_us), colour::kFault);
    return script;
  }

  void states() {
    std::vector<std::string> rows;
    std::vector<Bar> bars;
    for (const SessionState& state : states_) {
      // At least as long as can be seen.
      const double end = std::max(at(state.end_us), at(state.start_us) + span_ * 0.006);
      const double beyond = std::max(end - span_, 0.0);
      bars.push_back({at(state.start_us) - beyond, end - beyond, static_cast<double>(rows.size())});
      rows.emplace_back(state.name);
    }
    std::string commands = "$commands << EOD\nNaN NaN\n";
    std::string errors = "$errors << EOD\nNaN NaN\n";
    for (const auto& [peer, name] :
         {std::pair(kToAgent, "to agent"), std::pair(kToQemu, "to QEMU")}) {
      double last = -1;
      for (const RunCommand& command : session_->commands) {
        if (command.to != peer)
          continue;
        const double start = at(command.start_us);
        if (command.error || !command.end_us) {
          errors += fmt::format("{:.6g} {}\n", start, rows.size());
        } else if (last < 0 || start - last > span_ / 500) {  // what would be seen as one is one
          commands += fmt::format("{:.6g} {}\n", start, static_cast<double>(rows.size()) + 0.3);
          last = start;
        }
      }
      rows.emplace_back(name);
    }
    const auto height = static_cast<unsigned>(rows.size()) * kRow;
    std::string script = row_tics(rows) + fault_numbers(height) + block("$states", bars) +
                         commands + "EOD\n" + errors + "EOD\n";
    script += fmt::format(
        "plot {}, $commands using 1:2:(0):(-0.6) with vectors nohead lw 1.5 lc rgb '{}' notitle, "
        "$errors using 1:2 with points pt 2 ps 0.9 lw 2 lc rgb '{}' notitle\n",
        plot_bars("$states", colour::kGuest), colour::kInk, colour::kFault);
    panels_.push_back({height, std::move(script)});
  }

  std::string fault_numbers(unsigned height) const {
    std::string script;
    for (std::size_t i = 0; i < session_->faults.size(); ++i)
      script += fmt::format("set label '{}' at {:.6g}, graph {:.4f} center textcolor rgb '{}'\n",
                            i + 1, at(session_->faults[i].at_us),
                            1 + 10.0 / static_cast<double>(height), colour::kFault);
    return script;
  }

  void latency() {
    constexpr double kLeast = 0.001;  // is drawn
    constexpr double kParts = 100;    // of the time axis: a pause shorter than one is not seen
    const std::int64_t step = step_us(session_->latency);
    std::string data;
    double longest = kLeast;
    for (std::size_t i = 0; i < session_->latency.size(); ++i) {
      const RunLatency& each = session_->latency[i];
      const double mean = std::max(milliseconds(each.mean_us), kLeast);
      longest = std::max(longest, milliseconds(each.longest_us));
      data += fmt::format("{:.6g} {:.6g} {:.6g}\n", at(each.start_us),
                          std::max(milliseconds(each.longest_us), kLeast), mean);
      if (i + 1 == session_->latency.size())
        break;
      const std::int64_t end = each.start_us + step;
      if (at(session_->latency[i + 1].start_us) - at(end) > span_ / kParts)  // the line breaks
        data += fmt::format("{:.6g} NaN {:.6g}\n\n", at(end), mean);
    }
    std::string script = "unset ytics\nset ytics autofreq nomirror scale 1\n" +
                         title(kPanel, "Requests, ms: longest (bars), mean (line)");
    script += fmt::format(
        "$latency << EOD\n{0}EOD\n"
        "set logscale y\nset yrange [0.0005:*]\n"
        "set ytics ({3})\n"
        "plot $latency using 1:2 with impulses lw 2 lc rgb '{1}' notitle, "
        "$latency using 1:3 with lines lw 1.5 lc rgb '{2}' notitle\n"
        "unset logscale y\n",
        data, colour::kAgent, colour::kInk, powers_of_ten(longest));
    panels_.push_back({kPanel, std::move(script)});
  }

  /// There is no step without a request in the list.
  static std::int64_t step_us(const std::vector<RunLatency>& list) {
    std::int64_t step = 0;
    for (std::size_t i = 1; i < list.size(); ++i)
      if (const std::int64_t pause = list[i].start_us - list[i - 1].start_us;
          step == 0 || pause < step)
        step = pause;
    return step;
  }

  /// From 0.001 to `highest`: as many as there is room for.
  static std::string powers_of_ten(double highest) {
    constexpr int kMost = 5;
    const int last = std::max(static_cast<int>(std::ceil(std::log10(highest))), 0);
    const int step = (last + 3 + kMost - 1) / kMost;
    std::string tics;
    for (int power = -3; power <= last; power += step)
      tics += fmt::format("{0}'{1:g}' {1:g}", tics.empty() ? "" : ", ", std::pow(10, power));
    return tics;
  }

  static std::string from_zero(double highest) {
    const double range = highest == 0 ? 1 : highest * 1.1;
    return fmt::format("unset ytics\nset ytics {} nomirror scale 1\nset yrange [0:{:.6g}]\n",
                       few_tics(range), range);
  }

  void overlay() {
    std::string data = "0 0\n";
    double most = 0;
    for (const RunAmount& each : session_->overlay) {
      const double mib = static_cast<double>(each.bytes) / (1 << 20);
      data += fmt::format("{:.6g} {:.6g}\n", at(each.at_us), mib);
      most = std::max(most, mib);
    }
    std::string script = from_zero(most) + title(kPanel, "Overlays, MiB");
    script += fmt::format(
        "$overlay << EOD\n{}EOD\n"
        "plot $overlay using 1:2 with fillsteps fs solid 1 lc rgb '{}' notitle\n",
        data, colour::kQemu);
    panels_.push_back({kPanel, std::move(script)});
  }

  void pull() {
    constexpr std::size_t kSteps = 100;
    const double step = span_ / kSteps;
    const std::vector<double> rates =
        rates_of(session_->pulled, session_->start_us,
                 std::max<std::int64_t>(1, (session_->end_us - session_->start_us) /
                                               static_cast<std::int64_t>(kSteps)),
                 kSteps);
    std::string data;
    double most = 0;
    for (std::size_t i = 0; i < rates.size(); ++i) {
      const double rate = rates[i] / (1 << 20);
      data += fmt::format("{:.6g} {:.6g}\n", static_cast<double>(i) * step, rate);
      most = std::max(most, rate);
    }
    std::string script = from_zero(most) + title(kPanel, "Pull, MiB/s");
    script += fmt::format(
        "$pull << EOD\n{}EOD\n"
        "plot $pull using 1:2 with fillsteps fs solid 1 lc rgb '{}' notitle\n",
        data, colour::kGuest);
    panels_.push_back({kPanel, std::move(script)});
  }

  const RunSession* session_;
  std::vector<SessionState> states_;
  double unit_us_ = 1e6;  // of the time axis
  double span_ = 1;
  std::vector<Panel> panels_;
};

}  // namespace

Picture draw_timeline(const std::string& name, const RunSession& session) {
  return Timeline(session).picture(name);
}

}  // namespace nbdelta::sim
