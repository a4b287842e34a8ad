#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace nbdelta::sim {

/// Colours are placeholders in a script, and those of a light page in the picture. Where there is
/// CSS, colour_rules() make variables of them, so that one picture fits light and dark pages.
namespace colour {
inline constexpr std::string_view kInk = "#010101";
inline constexpr std::string_view kGrid = "#020202";
inline constexpr std::string_view kAgent = "#030303";
inline constexpr std::string_view kQemu = "#040404";
inline constexpr std::string_view kOwn = "#050505";
inline constexpr std::string_view kGuest = "#060606";
inline constexpr std::string_view kFault = "#070707";
}  // namespace colour

/// For a style sheet: the variables' values, light and dark, as rules for `selector`, and what has
/// pictures use them.
std::string colour_rules(std::string_view selector);

/// A picture that gnuplot draws.
struct Picture {
  std::string name;   // of its file, without the ending: letters, digits, '-'
  std::string title;  // for those who cannot see it
  unsigned width = 480;
  unsigned height = 300;
  std::string script;  // what comes after 'set terminal' and 'set output'
};

/// A text in a script: quoted, without control characters.
std::string gnuplot_text(std::string_view text);
/// Text for HTML and XML, in elements and attributes.
std::string xml_text(std::string_view text);

/// Draws them all: SVG without an XML declaration, to be put into a page. Throws Error, also where
/// there is no gnuplot.
std::vector<std::string> draw(const std::vector<Picture>& pictures);

/// The same picture as a file of its own: with its rules, and paper below it.
std::string svg_file(const std::string& svg);

}  // namespace nbdelta::sim
