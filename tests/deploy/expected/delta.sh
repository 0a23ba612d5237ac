# sbatch SCRIPTS/JOB
#!/bin/bash

#SBATCH --job-name=JOB
#SBATCH --output=SCRIPTS/JOB.stdout
#SBATCH --error=SCRIPTS/JOB.stderr
#SBATCH --nodes=1
#SBATCH --time=30
#SBATCH --ntasks-per-node=1

#SBATCH --exclusive
#SBATCH --partition=cpu
#SBATCH --account=abcd-delta-cpu
#SBATCH --cpus-per-task=128

type module > /dev/null 2>&1 || { before="$PATH"; . /etc/profile; PATH="$PATH:$before"; }
module load anaconda3_cpu
set -a; . SITE/site.env; set +a
unset GLOBUS_COMPUTE_CLIENT_ID GLOBUS_COMPUTE_CLIENT_SECRET
unset PROXYSTORE_GLOBUS_CLIENT_ID PROXYSTORE_GLOBUS_CLIENT_SECRET
export PATH=ENV/bin:"$PATH"

export PARSL_CORES=128


export JOBNAME="JOB"

set -e
export CORES=$SLURM_CPUS_ON_NODE
export NODES=$SLURM_JOB_NUM_NODES

[[ "1" == "1" ]] && echo "Found cores : $CORES"
[[ "1" == "1" ]] && echo "Found nodes : $NODES"
WORKERCOUNT=1
SCRIPT_DIR="SCRIPTS"
[[ -d $SCRIPT_DIR ]] || SCRIPT_DIR=""

cat << SLURM_EOF > ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh
process_worker_pool.py OPTIONS
SLURM_EOF
chmod a+x ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

srun --ntasks 1 -l -c 128 bash ${SCRIPT_DIR:+$SCRIPT_DIR/}cmd_$SLURM_JOB_NAME.sh

[[ "1" == "1" ]] && echo "Done"

