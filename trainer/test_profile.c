/* The profile's range of steps, and clocks of nodes that are compared by barriers. */
#include "trainer/profile.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check_range(const char *text, int64_t first, int64_t last)
{
    struct profile_range range;
    struct error error = {0};

    assert_int_equal(profile_range_parse(&range, text, &error), 0);
    assert_int_equal(range.first, first);
    assert_int_equal(range.last, last);
}

static void test_range(void **state)
{
    static const char *const wrong[] = {"",          "0",
                                        "-1",        "+3",
                                        "x",         "3:",
                                        "3:0",       "3:x",
                                        "3:2:1",     "3 ",
                                        "3:-2",      "99999999999999999999",
                                        "3:1000001", "9223372036854775807:5"};

    (void)state;
    check_range("3", 3, 3);
    check_range("100:3", 100, 102);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
        struct profile_range range;
        struct error error = {0};

        assert_int_equal(profile_range_parse(&range, wrong[i], &error), -1);
        assert_int_equal(error.status, EXIT_STATUS_USAGE);
        assert_non_null(strstr(error.text, wrong[i]));
    }
}

/* --- clocks ----------------------------------------------------------------------------------- */

enum { NODES = 3, RANKS = 6 };
static const int64_t ahead_ns[NODES] = {0, 7000000000, -123456789};

/* As if all had come to barriers within `enter_ns`, and gone from there within `leave_ns` of the
 * last one's coming. */
static void make_clocks(struct profile_clock clocks[RANKS], int64_t enter_ns, int64_t leave_ns)
{
    int64_t now_ns = 1000000000;

    srand(5);
    for (int i = 0; i < PROFILE_CLOCK_ROUNDS; i++) {
        int64_t last_ns = 0, entered_ns[RANKS];

        for (int rank = 0; rank < RANKS; rank++) {
            entered_ns[rank] = now_ns + rand() % enter_ns;
            if (entered_ns[rank] > last_ns)
                last_ns = entered_ns[rank];
        }
        now_ns = last_ns;
        for (int rank = 0; rank < RANKS; rank++) {
            int node = rank * NODES / RANKS;
            int64_t left_ns = last_ns + rand() % leave_ns;

            clocks[rank].node = node;
            clocks[rank].entered_ns[i] = entered_ns[rank] + ahead_ns[node];
            clocks[rank].left_ns[i] = left_ns + ahead_ns[node];
            if (left_ns > now_ns)
                now_ns = left_ns;
        }
    }
}

static void test_clocks(void **state)
{
    struct profile_clock clocks[RANKS];

    (void)state;
    make_clocks(clocks, 3000, 20000);
    for (int rank = 0; rank < RANKS; rank++) {
        int64_t error_ns, off_ns;

        off_ns =
            profile_clock_ahead(clocks, RANKS, rank, &error_ns) - ahead_ns[rank * NODES / RANKS];
        /* Never worse than it says, and much better than one barrier takes. */
        assert_in_range(llabs(off_ns), 0, error_ns);
        assert_in_range(error_ns, 0, rank < RANKS / NODES ? 0 : 3000);
    }
    /* Ranks of a node have one clock. */
    for (int rank = 0; rank < RANKS; rank += 2) {
        int64_t error_ns;

        assert_int_equal(profile_clock_ahead(clocks, RANKS, rank, &error_ns),
                         profile_clock_ahead(clocks, RANKS, rank + 1, &error_ns));
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range),
        cmocka_unit_test(test_clocks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
