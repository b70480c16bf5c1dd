// The whole of the test framework: a claim is a function that throws when it does not hold.
#pragma once

#include <cstdio>
#include <exception>
#include <initializer_list>
#include <sstream>
#include <stdexcept>

template <class... Parts>
void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  text.precision(17);
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

struct Claim {
  const char* name;
  void (*test)();
};

// Tests every claim; returns what main returns.
inline int check_claims(std::initializer_list<Claim> claims) {
  int failures = 0;
  for (const Claim& claim : claims) {
    try {
      claim.test();
      std::printf("%s\n", claim.name);
    } catch (const std::exception& error) {
      ++failures;
      std::printf("FAILED %s: %s\n", claim.name, error.what());
    }
  }
  return failures != 0;
}
