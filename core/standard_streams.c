#include "core/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

void standard_streams_open(void)
{
    int descriptor;

    do
        descriptor = open("/dev/null", O_RDONLY);
    while (descriptor >= 0 && descriptor <= STDERR_FILENO);
    if (descriptor >= 0)
        close(descriptor);
}
