/* Text in HTML, SVG and attributes. */
#ifndef MTLLM_REPORT_MARKUP_H
#define MTLLM_REPORT_MARKUP_H

#include <stdio.h>

/* Write text so that it is shown as it is, whatever it holds, and cannot end what it stands in.
 * Control characters that XML does not allow, and bytes that are no UTF-8, become U+FFFD. */
void markup_text(const char *text, FILE *stream);

/* printf() into markup: the result is written by markup_text(). Cut at 1 KiB. */
void markup_printf(FILE *stream, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
