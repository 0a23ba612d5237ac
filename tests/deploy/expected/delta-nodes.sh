# sbatch SCRIPTS/JOB
#!/bin/bash

#SBATCH --job-name=JOB
#SBATCH --output=SCRIPTS/JOB.stdout
#SBATCH --error=SCRIPTS/JOB.stderr
#SBATCH --nodes=2
#SBATCH --time=30
#SBATCH --ntasks-per-node=1

#SBATCH --exclusive
#SBATCH --partition=cpu
#SBATCH --account=abcd-delta-cpu
#SBATCH --cpus-per-task=128

type module > /dev/null 2>&1 || { before="$PATH"; . /etc/profile; PATH="$PATH:$before"; }
module load anaconda3_cpu
set -a; . SITE/site.env; set +a
export FL_NODE_LAUNCHER='srun --overlap --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 -c 128' FL_NODE_INTERFACE=hsn0
unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET
unset PROXYSTORE_GLOBUS_CLIENT_ID PROXYSTORE_GLOBUS_CLIENT_SECRET
export PATH=ENV/bin:"$PATH"

export PARSL_CORES=128


export JOBNAME="JOB"

process_worker_pool.py OPTIONS
