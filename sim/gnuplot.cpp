#include "sim/gnuplot.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <regex>
#include <span>

#include "base/error.hpp"
#include "base/file.hpp"
#include "client/backup/real/child.hpp"

namespace nbdelta::sim {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::minutes kPatience{2};

/// Light and dark values keep 4.5:1 against the paper for what is text, and differ in lightness,
/// not in hue alone. No two light ones are the same: a picture's attributes have them, and rules
/// find what they are for by that.
struct Colour {
  std::string_view placeholder;
  const char* name;
  const char* light;
  const char* dark;
};
constexpr std::array<Colour, 7> kColours{{{colour::kInk, "ink", "#1f2328", "#e6e6e6"},
                                          {colour::kGrid, "grid", "#d5d8dc", "#3d4248"},
                                          {colour::kAgent, "agent", "#7fb8e6", "#3f74a8"},
                                          {colour::kQemu, "qemu", "#b35c00", "#ffb454"},
                                          {colour::kOwn, "own", "#000000", "#ffffff"},
                                          {colour::kGuest, "guest", "#2f6db0", "#7cb7f0"},
                                          {colour::kFault, "fault", "#b0123f", "#ff8fa8"}}};
constexpr const char* kLightPaper = "#ffffff";
constexpr const char* kDarkPaper = "#16181b";

/// A folder that is gone with its owner.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "nbdelta-report.XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr)
      fail_errno("{}: cannot be made", name);
    path_ = name;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

File memory_file(const char* name) {
  const int fd = ::memfd_create(name, MFD_CLOEXEC);
  if (fd < 0)
    fail_errno("cannot get memory for {}", name);
  return {FileDescriptor(fd), name};
}

void run_gnuplot(const std::string& script) {
  const File input = memory_file("gnuplot's script");
  input.write_at(std::as_bytes(std::span(script)), 0);
  const File output = memory_file("gnuplot's messages");
  const auto start = [&] {
    try {
      // Without the user's settings.
      return client::backup::Child({"gnuplot", "-d", "/dev/stdin"},
                                   {.input = input.fd(), .output = output.fd()});
    } catch (const Error& error) {
      if (error.error_number() != ENOENT)
        throw;
      fail(ENOENT,
           "gnuplot is not installed, and it draws the pictures: install it (Debian: gnuplot-nox)");
    }
  };
  auto gnuplot = start();
  gnuplot.end(kPatience);
  std::string said(output.size(), '\0');
  output.read_exactly_at(std::as_writable_bytes(std::span(said)), 0);
  if (gnuplot.status() != 0)
    fail(EIO, "gnuplot fails: {}", said);
}

std::string replaced(std::string text, const std::regex& what, const std::string& by) {
  return std::regex_replace(text, what, by);
}

/// What gnuplot has drawn, for a page: of the pictures of a page no two have the same ids.
std::string for_page(const Picture& picture, std::string svg) {
  const std::size_t begin = svg.find("<svg");
  if (begin == std::string::npos || svg.find("</svg>") == std::string::npos)
    fail(EIO, "gnuplot has not finished the picture {}", picture.name);
  svg.erase(0, begin);
  for (const Colour& each : kColours) {
    const int value = std::stoi(std::string(each.placeholder.substr(5)), nullptr, 16);
    svg = replaced(svg, std::regex(fmt::format(R"(rgb\( *{0}, *{0}, *{0}\))", value)), each.light);
  }
  // Of groups; what is in them has its "currentColor" from there.
  svg = replaced(svg, std::regex("=(['\"])black\\1"), fmt::format("=$1{}$1", kColours[0].light));
  svg = replaced(svg, std::regex("<title>gnuplot_plot_[^<]*</title>"), "");
  svg = replaced(svg, std::regex("<title>[^<]*</title>\\s*<desc>[^<]*</desc>"),
                 fmt::format("<title>{}</title>", xml_text(picture.title)));
  svg = replaced(svg, std::regex("(id=['\"]|href=['\"]#|url\\(#)"), "$1" + picture.name + "-");
  return svg;
}

}  // namespace

std::string gnuplot_text(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'')
      quoted += "''";
    else
      quoted += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
  }
  return quoted + "'";
}

std::string xml_text(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else if (c == '\'')
      out += "&#39;";
    else
      out += static_cast<unsigned char>(c) < ' ' && c != '\n' ? ' ' : c;
  }
  return out;
}

std::string colour_rules(std::string_view selector) {
  std::string light = fmt::format("--paper: {};", kLightPaper);
  std::string dark = fmt::format("--paper: {};", kDarkPaper);
  for (const Colour& each : kColours) {
    light += fmt::format(" --{}: {};", each.name, each.light);
    dark += fmt::format(" --{}: {};", each.name, each.dark);
  }
  std::string rules =
      fmt::format("{0} {{ {1} }}\n@media (prefers-color-scheme: dark) {{ {0} {{ {2} }} }}\n",
                  selector, light, dark);
  // They count for more than attributes; what knows no variables ignores them.
  for (const Colour& each : kColours)
    for (const char* attribute : {"fill", "stroke", "color"})
      rules +=
          fmt::format("[{0}=\"{1}\"] {{ {0}: var(--{2}); }}\n", attribute, each.light, each.name);
  return rules;
}

std::vector<std::string> draw(const std::vector<Picture>& pictures) {
  if (pictures.empty())
    return {};
  const TemporaryFolder folder;
  const auto file = [&](const Picture& picture) {
    return (folder.path() / (picture.name + ".svg")).string();
  };
  std::string script = "set encoding utf8\n";
  for (const Picture& picture : pictures)
    script += fmt::format(
        "reset\n"
        "set terminal svg size {},{} dynamic noenhanced font 'sans-serif,15'\n"
        "set output {}\n{}\nunset output\n",
        picture.width, picture.height, gnuplot_text(file(picture)), picture.script);
  run_gnuplot(script);
  std::vector<std::string> drawn;
  for (const Picture& picture : pictures) {
    std::ifstream in(file(picture));
    drawn.push_back(for_page(picture, std::string{std::istreambuf_iterator<char>(in), {}}));
  }
  return drawn;
}

std::string svg_file(const std::string& svg) {
  const std::string head = fmt::format(
      "\n<style>\n{}.paper {{ fill: var(--paper); }}\n</style>\n"
      "<rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"{}\"/>",
      colour_rules(":root"), kLightPaper);
  std::string file = svg;
  file.insert(file.find('>', file.find("<svg")) + 1, head);
  return "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n" + file;
}

}  // namespace nbdelta::sim
