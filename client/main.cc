#include <signal.h>

#include "client/application.h"

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_DFL);  // `mtctl list | head` ends quietly
  return mt::client::RunMtctl(argc, argv);
}
