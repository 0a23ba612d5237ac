# qsub -q debug -A my-project SCRIPTS/JOB
#!/bin/bash

#PBS -S /bin/bash
#PBS -N JOB
#PBS -m n
#PBS -l walltime=00:30:00
#PBS -l select=2:ncpus=208
#PBS -o SCRIPTS/JOB.stdout
#PBS -e SCRIPTS/JOB.stderr
#PBS -l filesystems=home:flare

export FL_BLOCK_END=$(( $(date +%s) + 1800 ))
type module > /dev/null 2>&1 || { before="$PATH"; . /etc/profile; PATH="$PATH:$before"; }
module load frameworks
set -a; . SITE/site.env; set +a
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
export FL_NODE_LAUNCHER='mpiexec --cpu-bind none --ppn 1 -n {nodes} --hostfile {hostfile}' FL_NODE_INTERFACE=lo
unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET
unset PROXYSTORE_GLOBUS_CLIENT_ID PROXYSTORE_GLOBUS_CLIENT_SECRET
export PATH=ENV/bin:"$PATH"


export JOBNAME="JOB"

process_worker_pool.py OPTIONS

