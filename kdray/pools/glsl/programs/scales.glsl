// Rows of overlapping scales.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = turn(TAU * random(0)) * centred(at) * between(1, 1.5, 3.5) + vec2(0.2, 0.3) * iTime;
    float best = -1.0;
    vec3 own = vec3(0);
    for (int k = 2; k >= 0; k--) {
        float row = floor(p.y * 2.0) + float(k) - 1.0;
        float shift = 0.5 * mod(row, 2.0), column = floor(p.x + shift);
        vec2 f = vec2(p.x + shift - column - 0.5, p.y - 0.5 * row - 0.5);
        float far = length(f * vec2(1.0, between(2, 0.7, 1.1)));
        if (far < 0.56 && f.y < 0.25) {
            float rim = smoothstep(0.56, 0.4, far);
            own = mix(ink(3), palette(dice(vec2(column, row)) * 0.4), 0.6) * (0.3 + 0.7 * rim) * (0.8 - f.y);
            best = 1.0;
        }
    }
    colour = vec4(best > 0.0 ? own : ink(4) * 0.4, 1);
}
