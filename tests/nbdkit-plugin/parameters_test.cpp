#include "nbdkit-plugin/options.hpp"

#include <sys/stat.h>

#include <filesystem>
#include <sstream>

#include "tests/nbdkit-plugin/plugin_test.hpp"

namespace nbdelta::testing {
namespace {

using plugin::Options;

using Parameters = PluginTest;

std::string message_of(const std::vector<std::pair<std::string, std::string>>& parameters) {
  try {
    Options options;
    for (const auto& [key, value] : parameters)
      options.set(key, value);
    options.check();
  } catch (const Error& error) {
    return error.what();
  }
  return "no Error";
}

TEST(Options, RefuseWhatTheyCannotUse) {
  const struct {
    std::vector<std::pair<std::string, std::string>> parameters;
    std::string message;
  } rows[] = {
      {{}, "which image?"},
      {{{"image", ""}}, "image=: expected a path"},
      {{{"image", "/a"}, {"image", "/b"}}, "image=/b: there is an image already (/a)"},
      {{{"format", "vmdk"}}, "format: 'vmdk' is not supported (qcow2 and raw are)"},
      {{{"format", ""}}, "format: ''"},
      {{{"lock", "maybe"}}, "lock=maybe: expected on or off"},
      {{{"direct", ""}}, "direct=: expected on or off"},
      {{{"packed", "maybe"}}, "packed=maybe: expected on or off"},
      {{{"readahead", "-1"}}, "readahead: '-1' is not a size"},
      {{{"readahead", "99999999E"}}, "readahead: "},
      {{{"backing", ""}}, "backing=: expected a path"},
      {{{"map", ""}}, "map=: expected a path"},
      {{{"image", "/a"}, {"map-context", "qemu:dirty-bitmap:b"}}, "needs map="},
      {{{"image", "/a"}, {"map", "nbd://host"}}, "map=nbd://host: needs map-context="},
      {{{"image", "/a"}, {"map", "nbd://host"}, {"map-context", "x"}}, "map-context=x: expected"},
      {{{"colour", "red"}}, "unknown parameter 'colour'"},
  };
  for (const auto& row : rows)
    EXPECT_THAT(message_of(row.parameters), HasSubstr(row.message));
}

TEST(Options, KeepDotsThatOnlyTheKernelCanFollow) {
  Options options;
  options.set("image", "/link/../disk.qcow2");
  EXPECT_EQ(options.image, "/link/../disk.qcow2");
}

TEST(Options, HelpHasOneLineForEachParameter) {
  std::vector<std::string> lines;
  std::istringstream help(Options::help());
  for (std::string line; std::getline(help, line);)
    lines.push_back(line);
  const std::vector<std::string> parameters{
      "[image=]", "format=", "backing=", "map=",      "map-context=",
      "lock=",    "direct=", "packed=",  "readahead="};
  ASSERT_EQ(lines.size(), parameters.size());
  for (std::size_t i = 0; i < lines.size(); ++i) {
    EXPECT_TRUE(lines[i].starts_with(parameters[i])) << lines[i];
    EXPECT_LE(lines[i].size(), 90U) << lines[i];
  }
}

TEST_F(Parameters, NbdkitShowsHelpAndWhatThePluginIs) {
  const auto say = [](const std::string& option) {
    Command command = nbdkit_command();
    command.insert(command.end(), {delta_plugin(), option});
    return run_ok(command);
  };
  EXPECT_THAT(say("--help"), HasSubstr(Options::help()));
  const std::string dump = say("--dump-plugin");
  for (const char* line : {"name=delta\n", "magic_config_key=image\n", "thread_model=parallel\n",
                           "delta_formats=qcow2 raw\n", "delta_cache_bytes=50331648\n"})
    EXPECT_THAT(dump, HasSubstr(line));
  EXPECT_EQ(dump.find("has_pwrite"), std::string::npos) << dump;
}

TEST_F(Parameters, ImageIsTheMagicKeyAndARelativePathIsKept) {
  create_image(disk, "qcow2", kMiB);
  Command command = nbdkit_command();
  // Into the background, where the working folder is "/".
  command.insert(command.end(),
                 {"--unix", "-", delta_plugin(), "disk.qcow2", "--run", "nbdinfo --size \"$uri\""});
  EXPECT_EQ(run_ok(command, {.input = {}, .environment = {}, .folder = folder.path()}),
            "1048576\n");
}

TEST_F(Parameters, ReachTheImageBehindALinkToAFolder) {
  std::filesystem::create_directories(folder / "a/b");
  std::filesystem::create_directory_symlink(folder / "a/b", folder / "link");
  create_image(folder / "a/right.qcow2", "qcow2", kMiB);
  EXPECT_TRUE(try_delta({folder / "link/../right.qcow2"}).ok());
}

TEST_F(Parameters, ImageMustBeAFileOrBlockDevice) {
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  write_file(folder / "empty", "");
  write_file(folder / "text", std::string(100'000, 'x'));
  write_file(folder / "short", "QFI\xfb");
  const struct {
    std::string path;
    std::string message;
  } rows[] = {
      {folder / "missing", "missing: cannot open: No such file or directory"},
      {folder / "pipe", "pipe: is neither a regular file nor a block device"},
      {folder.path(), "is neither a regular file nor a block device"},
      {"/dev/zero", "/dev/zero: is neither a regular file nor a block device"},
      {folder / "empty", "empty: is not a qcow2 image (no magic at offset 0)"},
      {folder / "text", "text: is not a qcow2 image (no magic at offset 0); say format=raw"},
      {folder / "short", "short: qcow2 header: is cut off: the file has 4 bytes"},
  };
  for (const auto& row : rows)
    EXPECT_THAT(refusal({row.path}), HasSubstr(row.message));
  EXPECT_THAT(refusal({folder / "pipe", "format=raw"}), HasSubstr("neither a regular file"));
}

TEST_F(Parameters, EmptyRawImageIsServed) {
  write_file(folder / "empty", "");
  const NbdServer server = NbdServer::delta({folder / "empty", "format=raw"});
  EXPECT_EQ(run_ok({"nbdinfo", "--size", server.uri()}), "0\n");
}

TEST_F(Parameters, FormatIsNeverProbed) {
  create_image(disk, "qcow2", kMiB);
  const NbdServer server = NbdServer::delta({disk, "format=raw"});
  EXPECT_EQ(difference(disk, "raw", server.uri(), "raw"), "");
  EXPECT_EQ(run_ok({"nbdinfo", "--size", server.uri()}),
            fmt::format("{}\n", std::filesystem::file_size(disk)));
  EXPECT_THAT(refusal(server, "dirty:b0"), HasSubstr("a raw image holds no bitmaps; see map="));
}

TEST_F(Parameters, WhatCannotBeReadIsRefusedByName) {
  create_image(disk, "qcow2", kMiB);
  const std::string plain = disk;
  const auto changed = [&](auto change) {
    const std::string path = folder / "changed.qcow2";
    std::filesystem::copy_file(plain, path, std::filesystem::copy_options::overwrite_existing);
    change(path);
    return refusal({path});
  };
  const auto incompatible = [&](std::uint64_t bit) {
    return changed([&](const std::string& path) {
      write_number<std::uint64_t>(path, header_field::kIncompatible, bit);
    });
  };
  EXPECT_THAT(incompatible(2), HasSubstr("is marked corrupt (incompatible feature bit 1)"));
  EXPECT_THAT(incompatible(std::uint64_t{1} << 63),
              HasSubstr("needs an unknown feature (incompatible feature bit 63)"));
  EXPECT_THAT(changed([](const std::string& path) {
                // The table that QEMU writes; "dirty bit" is its name for incompatible bit 0.
                const std::vector<std::byte> bytes = read_file(path);
                const std::string_view text(reinterpret_cast<const char*>(bytes.data()), 4096);
                const std::size_t name = text.find("dirty bit");
                ASSERT_NE(name, std::string_view::npos);
                write_number<std::uint8_t>(path, name - 1, 40);
                write_text(path, name, "time travel");
                write_number<std::uint64_t>(path, header_field::kIncompatible,
                                            std::uint64_t{1} << 40);
              }),
              HasSubstr("needs the feature 'time travel' (incompatible feature bit 40)"));
  EXPECT_THAT(changed([](const std::string& path) {
                write_number<std::uint32_t>(path, header_field::kCryptMethod, 1);
              }),
              HasSubstr("is encrypted (AES)"));
  // Made by hand: `qemu-img create` with LUKS fails now and then, where it cannot time itself.
  EXPECT_THAT(changed([](const std::string& path) {
                write_number<std::uint32_t>(path, header_field::kCryptMethod, 2);
              }),
              HasSubstr("is encrypted (LUKS)"));
}

}  // namespace
}  // namespace nbdelta::testing
