#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <chrono>
#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "base/error.hpp"
#include "base/units.hpp"
#include "tests/sim/script.hpp"
#include "tests/sim/subject.hpp"
#include "tests/sim/transcript.hpp"

/// The same scripts (scripts/*.qmp) are run with a real QEMU and with the fake one, as the version
/// that is installed; what both say must be the same, but for what transcript.hpp leaves out.
/// $NBDELTA_QEMU may name another QEMU; $NBDELTA_TRANSCRIPTS a folder to keep transcripts in.
namespace nbdelta::testing {
namespace {

namespace json = boost::json;

class Runner {
 public:
  explicit Runner(Subject& subject) : subject_(&subject), transcript_(subject.folder()) {}

  std::vector<std::string> carry_out(const std::vector<Step>& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const Step& step = steps[i];
      waits_next_ = i + 1 < steps.size() && steps[i + 1].verb == "until";
      transcript_.note(step.text);
      try {
        carry_out(step);
      } catch (const Error& error) {
        transcript_.note(fmt::format("?? {}", error.what()));
        break;
      }
    }
    return transcript_.lines();
  }

 private:
  void carry_out(const Step& step) {
    const auto word = [&](std::size_t i) {
      if (i >= step.words.size())
        fail(EINVAL, "a word is missing: {}", step.text);
      return step.words[i];
    };
    if (step.verb == "image") {
      std::optional<SubjectDisk> backing;
      if (step.words.size() > 3)
        backing = {.name = {}, .image = word(3), .format = formats_.at(word(3))};
      formats_[word(0)] = word(1);
      subject_->create_image(word(0), word(1), parse_size(word(2), step.verb), backing);
    } else if (step.verb == "storage") {
      subject_->limit_storage(word(0));
    } else if (step.verb == "full") {
      subject_->fill_storage();
    } else if (step.verb == "start") {
      start(step.words);
    } else if (step.verb == ">") {
      command(step.words);
    } else if (step.verb == ">>") {
      subject_->send(unescape(step.text.substr(std::min(step.text.size(), std::size_t{3}))) + "\n");
    } else if (step.verb == "answers") {
      for (unsigned n = static_cast<unsigned>(std::stoul(word(0))); n != 0; --n)
        take_answer("");
    } else if (step.verb == "until") {
      until(word(0), arguments_of(step.words, 1));
    } else if (step.verb == "write" || step.verb == "held-write") {
      subject_->write(word(0), parse_size(word(1), step.verb), parse_size(word(2), step.verb),
                      static_cast<unsigned>(std::stoul(word(3))));
      ++writes_;
      if (step.verb == "write") {
        wait_for_writes();
        subject_->flush(word(0));
      }
    } else if (step.verb == "deep") {
      const std::size_t depth = std::stoul(word(0));
      subject_->send(std::string(depth, '[') + std::string(depth, ']') + "\n");
    } else if (step.verb == "join") {
      subject_->join();
    } else if (step.verb == "greeted") {
      transcript_.note(subject_->greeted() ? "= yes" : "= no");
    } else if (step.verb == "leave") {
      subject_->leave();
    } else if (step.verb == "pause") {
      subject_->pause(std::chrono::milliseconds(std::stoul(word(0))));
    } else if (step.verb == "written") {
      transcript_.note(fmt::format("= {}", subject_->written()));
    } else if (step.verb == "all-written") {
      wait_for_writes();
    } else if (step.verb == "lock" || step.verb == "unlock") {
      subject_->lock(word(0), step.verb == "lock");
    } else if (step.verb == "show") {
      transcript_.note("=" + subject_->show(word(0), formats_.at(word(0))));
    } else if (step.verb == "kill") {
      subject_->kill();
    } else if (step.verb == "quit") {
      subject_->quit();
    } else {
      fail(EINVAL, "no such step: {}", step.text);
    }
  }

  void start(const std::vector<std::string>& disks) {
    std::vector<SubjectDisk> all;
    for (const std::string& disk : disks) {
      const std::size_t equals = disk.find('=');
      const std::size_t colon = disk.find(':');
      const std::string image = disk.substr(equals + 1, colon - equals - 1);
      all.push_back({.name = disk.substr(0, equals),
                     .image = image,
                     .format = formats_.at(image),
                     .by_drive = colon != std::string::npos});
    }
    writes_ = 0;
    subject_->start(all);
    take("");
  }

  void command(const std::vector<std::string>& words) {
    json::object message{{"execute", words.at(0)}};
    json::object arguments = arguments_of(words, 1);
    if (!arguments.empty())
      message["arguments"] = std::move(arguments);
    std::string line = json::serialize(message);
    for (std::size_t at = 0; (at = line.find("$DIR", at)) != std::string::npos;)
      line.replace(at, 4, subject_->folder());
    subject_->send(line + "\n");
    if (waits_next_)
      take_answer_first(words.at(0));
    else
      take_answer(words.at(0));
  }

  json::object take(const std::string& command) {
    const json::object message = json::parse(subject_->receive()).as_object();
    transcript_.message(command, message);
    return message;
  }

  void take_answer(const std::string& command) {
    while (take(command).contains("event")) {
    }
  }

  /// Where the next step waits for an event, it is a matter of luck which events come before the
  /// answer: they are put behind it.
  void take_answer_first(const std::string& command) {
    while (true) {
      json::object message = json::parse(subject_->receive()).as_object();
      if (!message.contains("event")) {
        transcript_.message(command, message);
        return;
      }
      early_.push_back(std::move(message));
    }
  }

  json::object next_event() {
    json::object message;
    if (early_.empty()) {
      message = json::parse(subject_->receive()).as_object();
    } else {
      message = std::move(early_.front());
      early_.pop_front();
    }
    transcript_.message("", message);
    if (!message.contains("event"))
      fail(EPROTO, "an answer to nothing");
    return message;
  }

  void until(const std::string& event, const json::object& members) {
    bool found = false;
    while (!found || !early_.empty()) {
      const json::object message = next_event();
      const json::object data =
          message.contains("data") ? message.at("data").as_object() : json::object();
      found |= message.at("event").as_string() == event &&
               std::all_of(members.begin(), members.end(), [&](const auto& member) {
                 const auto* value = data.if_contains(member.key());
                 return value != nullptr && *value == member.value();
               });
    }
  }

  void wait_for_writes() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (subject_->written() < writes_) {
      if (std::chrono::steady_clock::now() > deadline)
        fail(ETIMEDOUT, "{} of {} writes were carried out", subject_->written(), writes_);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

  static std::string unescape(const std::string& text) {
    std::string bytes;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text.compare(i, 2, "\\x") == 0 && i + 3 < text.size()) {
        bytes += static_cast<char>(std::stoul(text.substr(i + 2, 2), nullptr, 16));
        i += 3;
      } else {
        bytes += text[i];
      }
    }
    return bytes;
  }

  Subject* subject_;
  Transcript transcript_;
  std::map<std::string, std::string> formats_;
  std::size_t writes_ = 0;
  bool waits_next_ = false;
  std::deque<json::object> early_;
};

std::vector<std::string> scripts() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(NBDELTA_SCRIPTS))
    names.push_back(entry.path().stem());
  std::sort(names.begin(), names.end());
  return names;
}

void keep(const std::string& name, const std::vector<std::string>& lines) {
  const char* folder = std::getenv("NBDELTA_TRANSCRIPTS");
  if (folder == nullptr)
    return;
  std::ofstream file(fmt::format("{}/{}", folder, name));
  for (const std::string& line : lines)
    file << line << "\n";
}

class Faithful : public ::testing::TestWithParam<std::string> {};

TEST_P(Faithful, SaysWhatQemuSays) {
  const std::vector<Step> steps =
      read_script(fmt::format("{}/{}.qmp", NBDELTA_SCRIPTS, GetParam()));
  const auto real = real_subject();
  const std::vector<std::string> expected = Runner(*real).carry_out(steps);
  keep(GetParam() + ".real", expected);
  const auto fake = fake_subject(real_major_version());
  const std::vector<std::string> found = Runner(*fake).carry_out(steps);
  keep(GetParam() + ".fake", found);
  const std::string different = difference(expected, found);
  EXPECT_TRUE(different.empty()) << GetParam() << ".qmp:\n" << different;
  for (const std::string& line : expected)
    EXPECT_FALSE(line.starts_with("??")) << line;
}

/// "commit-active": "commit_active".
std::string case_name(const ::testing::TestParamInfo<std::string>& script) {
  std::string name = script.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Scripts, Faithful, ::testing::ValuesIn(scripts()), case_name);

}  // namespace
}  // namespace nbdelta::testing
