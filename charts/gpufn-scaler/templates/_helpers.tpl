{{- define "gpufn-scaler.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 55 | trimSuffix "-" }}
{{- end }}

{{- /* With room for what some objects have behind it. */}}
{{- define "gpufn-scaler.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 55 | trimSuffix "-" }}
{{- else if contains (include "gpufn-scaler.name" .) .Release.Name }}
{{- .Release.Name | trunc 55 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gpufn-scaler.name" .) | trunc 55 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "gpufn-scaler.webhook" -}}
{{- printf "%s-webhook" (include "gpufn-scaler.fullname" .) }}
{{- end }}

{{- /* What every object has. */}}
{{- define "gpufn-scaler.common" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: gpufn
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "gpufn-scaler.selector" -}}
app.kubernetes.io/name: {{ include "gpufn-scaler.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: scaler
{{- end }}

{{- define "gpufn-scaler.webhookSelector" -}}
app.kubernetes.io/name: {{ include "gpufn-scaler.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: webhook
{{- end }}

{{- define "gpufn-scaler.labels" -}}
{{ include "gpufn-scaler.common" . }}
{{ include "gpufn-scaler.selector" . }}
{{- end }}

{{- define "gpufn-scaler.webhookLabels" -}}
{{ include "gpufn-scaler.common" . }}
{{ include "gpufn-scaler.webhookSelector" . }}
{{- end }}

{{- define "gpufn-scaler.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gpufn-scaler.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: needed with serviceAccount.create=false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "gpufn-scaler.image" -}}
{{- $path := .Values.image.repository }}
{{- if .Values.image.registry }}{{ $path = printf "%s/%s" .Values.image.registry $path }}{{ end }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $path .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $path (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "gpufn-scaler.certificate" -}}
{{- default (include "gpufn-scaler.webhook" .) .Values.webhook.certificate.secretName }}
{{- end }}

{{- /* What both kinds of pods have, but for their labels and containers. */}}
{{- define "gpufn-scaler.pod" -}}
terminationGracePeriodSeconds: 30
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- /* What both kinds of containers have. */}}
{{- define "gpufn-scaler.container" -}}
image: {{ include "gpufn-scaler.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
env:
  - name: GPUFN_LOG
    value: {{ .Values.log.level | quote }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
# Others go on asking it until they know that it ends.
lifecycle:
  preStop:
    sleep:
      seconds: 5
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Replicas on different nodes, where there are any. */}}
{{- define "gpufn-scaler.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
{{- end }}
