/* Standard input, output and error are there, whoever started the program. */
#ifndef MTLLM_CORE_STANDARD_STREAMS_H
#define MTLLM_CORE_STANDARD_STREAMS_H

/* First in main(): where one of them was closed (2>&-), the next file that is opened would get its
 * number, and with it what is written for people. It becomes one that takes nothing: writing fails
 * with EBADF, as it would have. */
void standard_streams_open(void);

#endif
