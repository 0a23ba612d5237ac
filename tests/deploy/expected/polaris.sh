# qsub -q debug -A my-project SCRIPTS/JOB
#!/bin/bash

#PBS -S /bin/bash
#PBS -N JOB
#PBS -m n
#PBS -l walltime=00:30:00
#PBS -l select=1:ncpus=32:ngpus=4
#PBS -o SCRIPTS/JOB.stdout
#PBS -e SCRIPTS/JOB.stderr
#PBS -l filesystems=home:eagle

export FL_BLOCK_END=$(( $(date +%s) + 1800 ))
type module > /dev/null 2>&1 || { before="$PATH"; . /etc/profile; PATH="$PATH:$before"; }
module use /soft/modulefiles
module load conda
set -a; . SITE/site.env; set +a
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET
unset PROXYSTORE_GLOBUS_CLIENT_ID PROXYSTORE_GLOBUS_CLIENT_SECRET
export PATH=ENV/bin:"$PATH"


export JOBNAME="JOB"

set -e
export CORES=$(getconf _NPROCESSORS_ONLN)
[[ "1" == "1" ]] && echo "Found cores : $CORES"
WORKERCOUNT=1
SCRIPT_DIR="SCRIPTS"
[[ -d $SCRIPT_DIR ]] || SCRIPT_DIR=""

# Deduplicate the nodefile
HOSTFILE="$JOBNAME.nodes"
if [ -z "$PBS_NODEFILE" ]; then
    echo "localhost" > $HOSTFILE
else
    sort -u $PBS_NODEFILE > $HOSTFILE
fi

cat << MPIEXEC_EOF > ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh
process_worker_pool.py OPTIONS
MPIEXEC_EOF
chmod u+x ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh

mpiexec --cpu-bind none --depth=64 --ppn 1 -n $WORKERCOUNT --hostfile $HOSTFILE /usr/bin/sh ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$JOBNAME.sh

[[ "1" == "1" ]] && echo "All workers done"


