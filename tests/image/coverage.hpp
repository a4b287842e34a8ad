#pragma once

#include <map>
#include <string>
#include <vector>

#include "tests/image/random_image.hpp"

namespace nbdelta::testing {

/// How many seeds covered each feature of the table.
class Coverage {
 public:
  Coverage();
  void add(const RandomImage& image);
  /// For people.
  std::string table() const;
  /// Features that no seed covered.
  std::vector<std::string> missing() const;

 private:
  std::map<std::string, unsigned, std::less<>> seeds_;
};

}  // namespace nbdelta::testing
