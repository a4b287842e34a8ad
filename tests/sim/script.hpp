#pragma once

#include <boost/json/object.hpp>
#include <string>
#include <vector>

namespace nbdelta::testing {

/// One line of a script: what is done with a QEMU, real or not.
///
///     # a comment
///     image NAME FORMAT SIZE [NAME]        an image file; the last one is its backing file
///     start DISK=IMAGE[:drive] ...         QEMU with these disks of the guest's: as -blockdev with
///     the
///                                          node DISK, or as -drive with this id
///     > COMMAND KEY=VALUE ...              a command, until its answer; VALUE is JSON, or a string
///     >> TEXT                              these bytes and a line's end; TEXT may have \xHH
///     answers N                            as many answers to what was sent by >>
///     until EVENT [KEY=VALUE ...]          until an event whose data has these members
///     write DISK OFFSET LENGTH PATTERN     the guest's, until it is carried out and flushed;
///                                          PATTERN 0: zeros
///     held-write DISK OFFSET LENGTH PATTERN   the same, but nobody waits for it or flushes it
///     written                              how many writes were carried out since the start
///     all-written                          until all were
///     pause MILLISECONDS
///     lock IMAGE, unlock IMAGE             somebody else reads it, and forbids that it is written
///     to show IMAGE                           what the file holds itself, without what is not
///     flushed kill, quit SIGKILL, SIGTERM
///
/// $DIR is where the images are. A line that ends with \ goes on in the next one.
struct Step {
  std::string verb;
  std::vector<std::string> words;
  std::string text;  // the whole line, as it is shown
};

/// Throws Error with the place.
std::vector<Step> read_script(const std::string& path);

/// Of KEY=VALUE words.
boost::json::object arguments_of(const std::vector<std::string>& words, std::size_t first);

}  // namespace nbdelta::testing
