#!/bin/sh
# Guards: what test_comm.c says, for 1, 2, 3, 4 and 8 ranks under mpirun; and that a rank that
# fails takes the others along with its exit status. Skipped (77) where there is no mpirun.
set -u
command -v mpirun >/dev/null || { echo "no mpirun"; exit 77; }
test -x trainer/test_comm || { echo "built without MPI"; exit 77; }

# More ranks than cores, any user, this host alone; MPI itself leaks at exit.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_leaks=0}"
unset PMIX_NAMESPACE SLURM_NTASKS SLURM_STEP_NUM_TASKS SLURM_JOB_ID SLURM_NODEID

status=0
fail() { echo "FAIL: $1"; status=1; }
on() { # RANKS PROGRAM [ARGUMENT]
    ranks=$1; shift
    timeout 300 mpirun --oversubscribe --bind-to none --mca btl self,vader -n "$ranks" "$@"
}

for ranks in 1 2 3 4 8; do
    on $ranks trainer/test_comm || fail "$ranks ranks: exit status $?"
done
on 4 trainer/test_comm share || fail "what rank 0 shares: exit status $?"
on 3 trainer/test_comm_pieces || fail "messages in pieces: exit status $?"
timeout 100 trainer/test_comm || fail "without mpirun: exit status $?"

message=$(on 3 trainer/test_comm abort 2>&1)
result=$?
[ $result = 65 ] || fail "abort of one rank: exit status $result, not 65: $message"
message=$(on 2 trainer/test_comm length 2>&1)
result=$?
[ $result = 74 ] || fail "wrong length: exit status $result, not 74: $message"
case $message in
*"rank 1 of 2 of group world: receive of 16 bytes failed"*) ;;
*) fail "wrong length: $message" ;;
esac
exit $status
