"""Several checkpoints of a job, newest first, where there was one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

jobs = sa.table("jobs", sa.column("id", sa.Text), sa.column("checkpoint", sa.JSON), sa.column("checkpoints", sa.JSON))


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoints", sa.JSON))
    connection = op.get_bind()
    for job_id, checkpoint in connection.execute(sa.select(jobs.c.id, jobs.c.checkpoint)).all():
        kept = [checkpoint] if checkpoint else []
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(checkpoints=kept))
    op.drop_column("jobs", "checkpoint")


def downgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoint", sa.JSON))
    connection = op.get_bind()
    for job_id, checkpoints in connection.execute(sa.select(jobs.c.id, jobs.c.checkpoints)).all():
        newest = checkpoints[0] if checkpoints else None
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(checkpoint=newest))
    op.drop_column("jobs", "checkpoints")
